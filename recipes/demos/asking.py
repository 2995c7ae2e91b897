"""What `demo.py` and `demo_page.py` share: the model, a text with a hidden sentence, answers, and what they looked at."""

from __future__ import annotations

import argparse
import contextlib
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from lib.packaged_model import PACKAGED, find_model
from lib.recipe import ModelArguments, fast_dtype, load_model
from peft import PeftModel
from transformers import TextIteratorStreamer, logging

from focus_peft.memory.memory import Memory


ROOT = Path(__file__).resolve().parents[2]
ADAPTER = ROOT / "hub" / "smollm2-135m-instruct-focus"
NEEDLE = " By the way, the number of the blue safe in the cellar is {number}."
QUESTION = "What is the number of the blue safe in the cellar?"


def add_options(parser: argparse.ArgumentParser, new_tokens: int) -> None:
    """The options that both have; `new_tokens` is the default for the longest answer."""
    parser.add_argument(
        "--tokens", type=int, default=30000, help="length of the Python reference, the example (default: 30000)"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=new_tokens, help=f"the longest answer (default: {new_tokens})"
    )
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: the one in hub/")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster one on this machine")
    parser.add_argument("--seed", type=int, default=0, help="chooses the hidden number and its place")


def load(adapter: Path, dtype: str | None = None) -> tuple[Any, Any]:
    """(SmolLM2-135M-Instruct with the adapter, tokenizer). `dtype`: default, the faster one on this machine."""
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
    if not (adapter / "adapter_config.json").is_file():
        raise SystemExit(f"error: {adapter} holds no adapter; give the folder of one with `--adapter`.")
    print(f"Loading {find_model()[1]} and the adapter in {adapter} ...", flush=True)
    fast = str(fast_dtype()).removeprefix("torch.")
    base, tokenizer = load_model(ModelArguments(PACKAGED, dtype=dtype or fast))
    return PeftModel.from_pretrained(base, adapter).eval(), tokenizer


def haystack(tokenizer: Any, tokens: int, seed: int) -> tuple[torch.Tensor, str]:
    """The Python reference with the needle between two of its paragraphs: ids of shape (1, about `tokens`), and the number."""
    draw = random.Random(seed)
    number = str(draw.randint(10000, 99999))
    paragraphs = "\n\n".join(text for _, text in sorted(topics.items())).split("\n\n")
    while len(tokenizer("\n\n".join(paragraphs), verbose=False).input_ids) > tokens:
        del paragraphs[len(paragraphs) * 9 // 10 :]
    paragraphs[draw.randrange(len(paragraphs))] += NEEDLE.format(number=number)
    return tokenizer("\n\n".join(paragraphs), verbose=False, return_tensors="pt").input_ids, number


def question_text(question: str) -> str:
    """What stands behind the document."""
    return f"\n\nQuestion: {question}\nAnswer:"


def question_ids(tokenizer: Any, question: str) -> torch.Tensor:
    """The same as ids of shape (1, tokens)."""
    return tokenizer(question_text(question), return_tensors="pt").input_ids


def read(model: Any, ids: torch.Tensor, progress: Callable[[float], Any], batch_size: int = 2) -> tuple[Memory, float]:
    """Encode a document, and say how far that is.

    Args:
        model (`PeftModel`): With the adapter.
        ids (`torch.LongTensor` of shape (1, tokens)): The document.
        progress (`Callable`): Called with the share of the tokens that have been read, after every batch of chunks.
        batch_size (`int`): Chunks in a batch. Few, for a bar that moves; results are the same.

    Returns:
        The memory, and the seconds it took.
    """
    total, done = ids.shape[1], 0

    def count(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal done
        done += kwargs["input_ids"].numel()  # the last chunk of a batch may be padded
        progress(min(1.0, done / total))

    model.base_model.reader  # noqa: B018  the first use checks the model with passes of its own, which are not to be counted
    start = time.perf_counter()
    # every pass over a batch of chunks is a call of the decoder
    hook = model.get_base_model().base_model.register_forward_hook(count, with_kwargs=True)
    try:
        memory = model.encode(ids, progress=False, chunk_batch_size=batch_size)
    finally:
        hook.remove()
    return memory, time.perf_counter() - start


@dataclass
class Answer:
    """An answer, or its beginning.

    Attributes:
        text (`str`): On one line.
        rate (`float`): Tokens per second, reading the question included. 0 as long as the answer grows.
    """

    text: str
    rate: float = 0.0


def answers(
    model: Any,
    tokenizer: Any,
    ids: torch.Tensor,
    new_tokens: int,
    memory: Memory | None = None,
    within: AbstractContextManager[Any] | None = None,
) -> Iterator[Answer]:
    """An answer as it grows, up to the end of its line; the last one is whole.

    Args:
        model (`PeftModel`): With the adapter.
        tokenizer: The model's.
        ids (`torch.LongTensor` of shape (1, tokens)): The local window, the question at its end.
        new_tokens (`int`): The longest answer.
        memory (`Memory`, *optional*): What stands before `ids`.
        within (context manager, *optional*): Entered as long as the model is at work, however long the caller listens.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    result: list[Any] = []
    options: dict[str, Any] = {} if memory is None else {"memory": memory}

    def run() -> None:
        try:
            with within or contextlib.nullcontext():
                output = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    stop_strings=["\n"],
                    tokenizer=tokenizer,
                    pad_token_id=tokenizer.eos_token_id,
                    streamer=streamer,
                    **options,
                )
            result.append(output.shape[1] - ids.shape[1])
        except BaseException as error:  # whoever waits for the answer shall have it
            result.append(error)
            streamer.end()

    start = time.perf_counter()
    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    text = ""
    for piece in streamer:
        text += piece
        yield Answer(text.strip())
    worker.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    yield Answer(text.strip(), result[0] / (time.perf_counter() - start))


def shades(shares: Sequence[float] | torch.Tensor) -> list[float]:
    """Shares of attention as parts of the largest, from 0 to 1."""
    values = [float(share) for share in shares]
    largest = max([1e-9, *values])
    return [value / largest for value in values]
