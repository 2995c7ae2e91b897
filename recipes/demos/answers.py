"""A document is read, and questions about it are answered, while the caller sees how far that is."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TextIteratorStreamer

from focus_peft.frozen.compat import CACHE
from focus_peft.memory.memory import Memory
from focus_peft.memory.progress import telling_progress


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
    with telling_progress(model, ids.shape[1], progress):
        start = time.perf_counter()
        memory = model.encode(ids, progress=False, chunk_batch_size=batch_size)
    return memory, time.perf_counter() - start


@dataclass
class Answer:
    """An answer, or its beginning.

    Attributes:
        text (`str`): On one line.
        rate (`float`): Tokens per second, reading the question included. 0 as long as the answer grows.
        read (`list[int]`): The chunks that were read in full, as soon as the answer is whole.
    """

    text: str
    rate: float = 0.0
    read: list[int] = field(default_factory=list)


def answers(
    model: Any,
    tokenizer: Any,
    ids: torch.Tensor,
    new_tokens: int,
    memory: Memory | None = None,
    within: AbstractContextManager[Any] | None = None,
    **options: Any,
) -> Iterator[Answer]:
    """An answer as it grows, up to the end of its line; the last one is whole.

    Args:
        model (`PeftModel`): With the adapter.
        tokenizer: The model's.
        ids (`torch.LongTensor` of shape (1, tokens)): The local window, the question at its end.
        new_tokens (`int`): The longest answer.
        memory (`Memory`, *optional*): What stands before `ids`.
        within (context manager, *optional*): Entered as long as the model is at work, however long the caller listens.
        **options: Of `generate`.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    result: list[Any] = []
    if memory is not None:
        options["memory"] = memory

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
                    return_dict_in_generate=True,
                    **options,
                )
            result.append(output)
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
    output = result[0]
    new = output.sequences.shape[1] - ids.shape[1]
    (read,) = getattr(output[CACHE], "read_chunks", [[]])
    yield Answer(text.strip(), new / (time.perf_counter() - start), read)
