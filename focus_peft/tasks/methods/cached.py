"""What baselines with a cache of their own have in common: they read the memory into it, and go on from there."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch

from ...frozen.alibi import Alibi
from ...kv.store import LayerStates
from ...passes.chunking import with_bos
from .base import Method, greedy, token_losses
from .cached_pass import run
from .label_blocks import label_blocks


class CachedMethod(Method):
    """A method that reads the memory into a cache of its own, and goes on from there."""

    def answer(self, ids: list[int], new_tokens: int) -> list[int]:
        start = max(0, len(ids) - self.settings.sizes.local)
        reading = self.empty()
        reading.extend(ids[:start])
        logits = reading.feed(with_bos(ids[start:], self.bos if start else None), 1)
        return greedy(self.base, logits, partial(reading.feed, keep=1), new_tokens)

    def label_losses(self, ids: list[int], labels: int) -> torch.Tensor:
        found = []
        memory, read = self.empty(), 0
        for block in label_blocks(len(ids), labels, self.settings.sizes):
            if read % self.unit:
                memory, read = self.empty(), 0
            memory.extend(ids[read : block.start])
            read = block.start
            reading = memory.fork()
            window = with_bos(ids[block.start : block.end - 1], self.bos if block.start else None)
            logits = reading.feed(window, block.end - block.first)
            found.append(token_losses(logits, ids[block.first : block.end]))
        return torch.cat(found)

    @property
    def bos(self) -> int | None:
        """What goes before the local window."""
        return self.settings.bos

    @property
    @abstractmethod
    def unit(self) -> int:
        """Tokens of the memory that are read at once: behind a whole number of these, reading goes on as if it had not
        stopped.
        """

    @abstractmethod
    def empty(self) -> Reading:
        """A cache in which nothing has been read."""

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        if self.facts.bounded or self.facts.sliding_window is not None or Alibi.of(self.base) is not None:
            return f"{type(self).__name__} needs plain rotary positions and attention to all tokens."
        return None


class Reading(ABC):
    """A cache, and the position that comes next."""

    def __init__(self, base: Any) -> None:
        self.base, self.layers, self.position = base, list[LayerStates](), 0

    @abstractmethod
    def extend(self, memory: list[int]) -> None:
        """Read more of what stands before the local window."""

    def fork(self) -> Reading:
        """Another one that has read the same; states are shared, and never written to."""
        return copy.copy(self)

    def feed(self, ids: list[int], keep: int) -> torch.Tensor:
        """Logits (`keep`, vocabulary) of the last of some new tokens, which stay in the cache."""
        logits, self.layers = run(self.base, ids, self.position, self.layers, keep)
        self.position += len(ids)
        return logits
