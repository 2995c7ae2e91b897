"""What else could be done with a choice of chunks: candidates that stay in front of what is read, a second round, and
another choice while the answer is written.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Any

import torch
from demos.model import load

from focus_peft.frozen.attention_record import best_chunks

from .facts import FACTS, LISTS, TEXTS, make_document
from .two_hops import draw_hops


# Of `drift`: values of a fact, the length of an answer, and the tokens after which chunks are chosen again
VALUES, NEW_TOKENS, AGAIN = 4, 40, 8


class Held:
    """A text that was read once, and is asked about."""

    def __init__(self, model: Any, ids: list[int]) -> None:
        self.model, self.sizes = model, model.settings().sizes
        held = len(ids) - self.sizes.local
        self.memory = model.encode(ids[:held], progress=False)
        self.chunks = [ids[start : min(held, start + self.sizes.chunk)] for start in range(0, held, self.sizes.chunk)]
        self.end = ids[held:]

    def window(self, question: list[int]) -> list[int]:
        return [*self.end, *question][-self.sizes.local :]

    def scores(self, window: list[int], read: list[int]) -> torch.Tensor:
        """What the end of a window looks at, with some chunks in full in front of it."""
        text = self.text(window, read)
        return self.model.chunk_scores(torch.tensor([text]), memory=self.memory, local_size=len(text) + 1)[0]

    def text(self, window: list[int], read: list[int]) -> list[int]:
        return [*(token for number in read for token in self.chunks[number]), *window]

    def answer(self, window: list[int], read: list[int], in_front: bool, new_tokens: int) -> list[int]:
        """What is generated behind the chunks `read`, with or without the candidates of all chunks in front."""
        text = torch.tensor([self.text(window, read)])
        options: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False}
        if in_front:
            options |= {"memory": self.memory, "local_size": text.shape[1] + new_tokens, "progress": False}
            found = self.model.generate(text, **options)
        else:
            found = self.model.get_base_model().generate(text, **options)
        return found[0, text.shape[1] :].tolist()


def forms(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Right answers with the chosen chunks alone, and with the candidates of all chunks in front of them."""
    model, tokenizer = load(args.adapter, "float32")
    found: dict[str, list[dict[str, Any]]] = {"alone": [], "candidates in front": []}
    for seed in range(args.texts):
        for kind in TEXTS:
            facts = random.Random(f"{kind} {seed}").sample(FACTS, 3)
            document = make_document(tokenizer, kind, args.tokens, facts, seed)
            held = Held(model, document.ids)
            for question, answer in zip(document.questions, document.answers):
                window = held.window(question)
                read = best_chunks(held.scores(window, []), args.read_chunks)
                for form, those in found.items():
                    said = tokenizer.decode(held.answer(window, read, form != "alone", 16))
                    those.append({"text": kind, "answer": answer, "said": said, "right": answer in said})
            yield {
                "tokens": args.tokens,
                "read_chunks": args.read_chunks,
                "right": {form: sum(one["right"] for one in those) for form, those in found.items()},
                "questions": len(found["alone"]),
                "answers": found,
            }


def drift(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The share of a fact's values that are answered, if chunks are chosen once, or again for every few tokens."""
    model, tokenizer = load(args.adapter, "float32")
    model.peft_config["default"] = model.peft_config["default"].with_overrides(chunk_size=args.chunk_size)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.texts):
        for kind in TEXTS:
            document = make_document(tokenizer, kind, args.tokens, [LISTS[seed % len(LISTS)]] * VALUES, seed)
            held = Held(model, document.ids)
            window = held.window(document.questions[0])
            for count in (1, 2, VALUES):
                for way, each in (("chosen once", NEW_TOKENS), (f"chosen again for every {AGAIN} tokens", AGAIN)):
                    answer: list[int] = []
                    while len(answer) < NEW_TOKENS:
                        end = [*window, *answer]
                        read = best_chunks(held.scores(end, []), count)
                        answer += held.answer(end, read, False, each)
                    said = tokenizer.decode(answer)
                    right = sum(value in said for value in document.answers) / VALUES
                    one = {"text": kind, "answers": document.answers, "said": said, "right": right}
                    found.setdefault(f"{count} chunks, {way}", []).append(one)
            yield {
                "tokens": args.tokens,
                "chunk_size": args.chunk_size,
                "right": {
                    way: round(sum(one["right"] for one in those) / len(those), 3) for way, those in found.items()
                },
                "answers": found,
            }


def rounds(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """How often both facts of a chain are among as many chunks, chosen in one round or in two."""
    model, tokenizer = load(args.adapter, "float32")
    model.peft_config["default"] = model.peft_config["default"].with_overrides(chunk_size=args.chunk_size)
    found: dict[str, list[list[int]]] = {}
    for seed in range(args.texts):
        for kind in TEXTS:
            facts, asked = draw_hops(random.Random(f"{kind} {seed}"))
            document = make_document(tokenizer, kind, args.tokens, facts, seed)
            held = Held(model, document.ids)
            holders = [{begin // args.chunk_size, (end - 1) // args.chunk_size} for begin, end in document.places]
            for words, first, second in asked:
                question = tokenizer(f"\n\nQuestion: {words}\nAnswer:", add_special_tokens=False).input_ids
                window = held.window(question)
                scores = held.scores(window, [])
                for count in (2, 4):
                    once = best_chunks(scores, count)
                    half = best_chunks(scores, count // 2)
                    again = held.scores(window, half)
                    again[half] = -1.0
                    twice = sorted([*half, *best_chunks(again, count - len(half))])
                    for way, chosen in (("one round", once), ("two rounds", twice)):
                        hits = [int(bool(holders[fact] & set(chosen))) for fact in (first, second)]
                        found.setdefault(f"{way}, {count} chunks", []).append(hits)
            yield {
                "tokens": args.tokens,
                "chunk_size": args.chunk_size,
                "questions": len(found["one round, 2 chunks"]),
                "both facts": {way: round(sum(map(min, hits)) / len(hits), 3) for way, hits in found.items()},
                "found": found,
            }
