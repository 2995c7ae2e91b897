"""How far the reading of a document is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def telling_progress(model: Any, tokens: int, tell: Callable[[float], Any]) -> Iterator[None]:
    """Within the context, each batch of chunks that this thread reads is told of.

    Args:
        model (`PeftModel`): With the adapter.
        tokens (`int`): Of the document.
        tell (`Callable`): Called with the share of them that has been read. What it raises ends the reading.
    """
    done, reading = 0, threading.get_ident()

    def count(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal done
        if threading.get_ident() == reading:  # others may be answered meanwhile
            done += kwargs["input_ids"].numel()  # the last chunk of a batch may be padded
            tell(min(1.0, done / tokens))

    model.base_model.reader  # noqa: B018  the first use checks the model with passes of its own, which are not to be counted
    # every pass over a batch of chunks is a call of the decoder
    hook = model.get_base_model().base_model.register_forward_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
