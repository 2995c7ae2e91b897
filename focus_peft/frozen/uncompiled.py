"""Passes are not compiled: they have many shapes, and compiling each takes minutes."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch


_lock = threading.Lock()
_inside = 0
_stance: Any = None


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Within the context, `torch.compile` does nothing. Threads may be inside at the same time: the stance is the
    process's, so the first that enters takes it and the last that leaves gives it back.
    """
    global _inside, _stance
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled
        yield
        return
    with _lock:
        if not _inside:
            _stance = torch.compiler.set_stance("force_eager")
            _stance.__enter__()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _stance.__exit__(None, None, None)
                _stance = None
