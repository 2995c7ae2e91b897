"""What could be done with a choice of chunks: read them with or without candidates in front, in a second round, or
choose again while the answer is written.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Any

from demos.model import load

from focus_peft.frozen.attention_record import best_chunks
from focus_peft.tasks.methods.base import end_tokens

from .facts import FACTS, LISTS, TEXTS, make_document
from .held_text import HeldText
from .two_hops import draw_hops


# Of `drift`: values of a fact, the length of an answer, and the tokens after which chunks are chosen again
VALUES, NEW_TOKENS, AGAIN = 4, 40, 8


def forms(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Right answers with the chosen chunks, with the candidates of all chunks, and with both."""
    model, tokenizer = load(args.adapter, "float32")
    read = {"read_chunks": args.read_chunks}
    ways = {"chunks": {**read, "keep_candidates": False}, "candidates": {}, "chunks behind candidates": read}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for seed in range(args.texts):
        for kind in TEXTS:
            facts = random.Random(f"{kind} {seed}").sample(FACTS, 3)
            document = make_document(tokenizer, kind, args.tokens, facts, seed)
            held = HeldText(model, document.ids)
            for question, answer in zip(document.questions, document.answers):
                for way, options in ways.items():
                    said = tokenizer.decode(held.answer(held.window(question), 16, **options))
                    found[way].append({"text": kind, "answer": answer, "said": said, "right": answer in said})
            yield {
                "tokens": args.tokens,
                "read_chunks": args.read_chunks,
                "right": {way: sum(one["right"] for one in those) for way, those in found.items()},
                "questions": len(found["chunks"]),
                "answers": found,
            }


def drift(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The share of a fact's values that are answered, if chunks are chosen once, or again for every few tokens."""
    model, tokenizer = load(args.adapter, "float32", chunk_size=args.chunk_size)
    ends = set(end_tokens(model.get_base_model()))
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.texts):
        for kind in TEXTS:
            document = make_document(tokenizer, kind, args.tokens, [LISTS[seed % len(LISTS)]] * VALUES, seed)
            held = HeldText(model, document.ids)
            window = held.window(document.questions[0])
            for count in (1, 2, VALUES):
                for way, each in (("chosen once", NEW_TOKENS), (f"chosen again for every {AGAIN} tokens", AGAIN)):
                    answer: list[int] = []
                    while len(answer) < NEW_TOKENS and ends.isdisjoint(answer[-1:]):
                        answer += held.answer([*window, *answer], each, read_chunks=count, keep_candidates=False)
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
    model, tokenizer = load(args.adapter, "float32", chunk_size=args.chunk_size)
    found: dict[str, list[list[int]]] = {}
    for seed in range(args.texts):
        for kind in TEXTS:
            facts, asked = draw_hops(random.Random(f"{kind} {seed}"))
            document = make_document(tokenizer, kind, args.tokens, facts, seed)
            held = HeldText(model, document.ids)
            holders = [set(held.holders(place)) for place in document.places]
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
