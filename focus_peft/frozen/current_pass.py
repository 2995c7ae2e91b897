"""The pass that is running in this thread: what parts of the frozen model look up while it runs.

Nothing of a pass stands on the model, its layers or its configuration, which requests in other threads share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .attention_record import AttentionRecord
from .parts import Parts


# (first query, last query + 1, last visible key + 1)
Block = tuple[int, int, int]


@dataclass
class Pass:
    """A pass with a mask of its own.

    Attributes:
        candidates (`int`): How many of the last tokens of each row go through the twins.
        masked (`str`): The attention implementation that stands in for one that takes no mask.
        grouped (`bool`): Whether queries share keys, so that sdpa attention is `grouped_sdpa`.
        shape (`list[Block]` or `int`, *optional*): Of a pass of many tokens, the blocks of its queries, or how many
            keys stand before those of its causal tokens.
        record (`AttentionRecord`, *optional*): Notes what the last token of each row looks at.
        parts (`Parts`, *optional*): Of a pass over rows of several stores, each of which attends by itself.
        biases (`dict[str, Any]`): What the attention modules of a model with ALiBi are given besides.
        checkpoints (`bool`): Whether layers that have gradient checkpointing on are checkpointed.
    """

    candidates: int = 0
    masked: str = "sdpa"
    grouped: bool = False
    shape: list[Block] | int | None = None
    record: AttentionRecord | None = None
    parts: Parts | None = None
    biases: dict[str, Any] = field(default_factory=dict)
    checkpoints: bool = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within the context, this is the pass that runs in this thread."""
        token = current_pass.set(self)
        try:
            yield
        finally:
            current_pass.reset(token)


current_pass: ContextVar[Pass | None] = ContextVar("current_pass", default=None)
