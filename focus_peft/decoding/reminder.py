"""transformers says when a text gets longer than the model was made for. A text that is read in chunks may be."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar


REMINDER = "exceeded the model's predefined maximum length"
_reads_chunks: ContextVar[bool] = ContextVar("reads_chunks", default=False)


@contextlib.contextmanager
def unreminded() -> Iterator[None]:
    """Within the context, this thread's calls of `generate` do not say that the text is too long."""
    token = _reads_chunks.set(True)
    try:
        yield
    finally:
        _reads_chunks.reset(token)


def _wanted(record: logging.LogRecord) -> bool:
    return not (_reads_chunks.get() and REMINDER in record.getMessage())


# a filter, and not the level: other models go on reminding
logging.getLogger("transformers.generation.stopping_criteria").addFilter(_wanted)
