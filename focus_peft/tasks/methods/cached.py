"""Baselines that keep a cache of their own: parallel context windows, and StreamingLLM."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from ...frozen.alibi import Alibi
from ...frozen.compat import CACHE
from ...kv.store import LayerStates
from ...passes.chunking import with_bos
from .base import Method, end_tokens, label_blocks, token_losses


class CachedMethod(Method):
    """A method that reads the memory into a cache of its own, and goes on from there."""

    def generate(self, ids: list[int], new_tokens: int) -> list[int]:
        self._check(ids)
        start = max(0, len(ids) - self.settings.sizes.local)
        new: list[int] = []
        ends = end_tokens(self.base)
        with torch.no_grad():
            reading = self.open(ids[:start])
            logits = reading.feed(with_bos(ids[start:], self.bos if start else None), 1)
            while True:
                new.append(int(logits[-1].argmax()))
                if new[-1] in ends or len(new) >= new_tokens:
                    return new
                logits = reading.feed(new[-1:], 1)

    def losses(self, ids: list[int], labels: int) -> torch.Tensor:
        self._check(ids, labels)
        found = []
        memory, read = self.open([]), 0
        for block in label_blocks(len(ids), labels, self.settings.sizes):
            with torch.no_grad():
                if read % self.unit:
                    memory, read = self.open([]), 0
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
        """Tokens of the memory that are read at once: behind a whole number of these, reading goes on as if it had not stopped."""

    @abstractmethod
    def open(self, memory: list[int]) -> Reading:
        """Read what stands before the local window."""

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


def run(
    base: Any, ids: list[int], position: int, past: list[LayerStates], keep: int
) -> tuple[torch.Tensor, list[LayerStates]]:
    """One pass of the base model behind cached keys and values: (logits of the last `keep` tokens, cache with the new ones)."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(past):
        cache.update(keys, values, number)
    new = torch.tensor([ids], device=base.device)
    held = past[0][0].shape[2] if past else 0
    output = base(
        new,
        attention_mask=new.new_ones(1, held + len(ids)),
        position_ids=torch.arange(position, position + len(ids), device=base.device)[None],
        use_cache=True,
        logits_to_keep=keep,
        **{CACHE: cache},
    )
    layers: list[Any] = cache.layers
    return output.logits[0], [(layer.keys, layer.values) for layer in layers]


def joined(read: list[list[LayerStates]]) -> list[LayerStates]:
    """Several caches one behind the other."""
    return [
        (torch.cat([keys for keys, _ in states], dim=2), torch.cat([values for _, values in states], dim=2))
        for states in zip(*read)
    ]
