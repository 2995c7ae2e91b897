"""What a refusal must be: an error of the right kind, in a full sentence that names the argument, before any long
work.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from focus_peft import Memory


@contextlib.contextmanager
def refusal(
    *named: str, model: nn.Module | None = None, error: type[Exception] | tuple[type[Exception], ...] = ValueError
) -> Iterator[pytest.ExceptionInfo]:
    """Within the context, something must be refused.

    Args:
        named (`str`): What the message must hold: the argument in backticks, the value, the remedy.
        model (`PeftModel`, *optional*): Its base model must not run.
        error: What must be raised.
    """
    with contextlib.ExitStack() as stack:
        passes = stack.enter_context(count_passes(model)) if model is not None else []
        with pytest.raises(error) as caught:
            yield caught
    assert_sentence(str(caught.value), *named)
    assert not passes, "the base model ran before the refusal"


def refused_everywhere(model: nn.Module, memory: Memory, *named: str) -> None:
    """Nothing may go on from a memory."""
    ids = torch.tensor(memory.documents[:1])
    for call in (model, model.generate, model.encode):
        with refusal(*named, model=model):
            call(ids, memory=memory)


@contextlib.contextmanager
def count_passes(model: nn.Module) -> Iterator[list[int]]:
    """A list that grows by one with every pass of a wrapped model's base model, the first few tokens' check left
    out.
    """
    _ = model.base_model.reader
    passes: list[int] = []
    handle = model.get_base_model().base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


def assert_sentence(message: str, *named: str) -> None:
    """The message is a full sentence and holds everything that is named."""
    for part in named:
        assert part in message, f"{part!r} is not in: {message}"
    assert message[0].isupper() or message[0].isdigit() or message[0] == "`", message
    assert message.rstrip().endswith("."), message
    assert len(message.split()) >= 5, message


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The system refuses to write more than `size` bytes into any file (Python ignores the signal and sees an
    error).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
