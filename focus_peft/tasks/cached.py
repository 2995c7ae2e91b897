"""Baselines that keep a cache of their own: parallel context windows, and StreamingLLM."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from ..alibi import Alibi
from ..cache_name import CACHE
from ..chunking import cut, with_bos
from ..slab import LayerStates
from .methods import Method, end_tokens, label_blocks, token_losses


# Tokens at the start of a text that StreamingLLM keeps
SINKS = 4


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


class ParallelWindows(CachedMethod):
    """Parallel context windows (Ratner et al., arXiv 2212.10947): the adapter's chunks, each read on its own from position 0, and a local
    window that attends to all of their tokens, behind the longest. No twins, and nothing is condensed.
    """

    @property
    def unit(self) -> int:
        return self.settings.sizes.chunk

    def open(self, memory: list[int]) -> Reading:
        reading = _Parallel(self.base, self.unit)
        reading.extend(memory)
        return reading


class _Parallel(Reading):
    def __init__(self, base: Any, chunk: int) -> None:
        super().__init__(base)
        self.chunk = chunk

    def extend(self, memory: list[int]) -> None:
        chunks = cut(memory, self.chunk)
        read = [run(self.base, chunk, 0, [], 1)[1] for chunk in chunks]
        if read:
            self.layers = joined([self.layers, *read] if self.layers else read)
            self.position = max(self.position, *map(len, chunks))


class StreamingLLM(CachedMethod):
    """StreamingLLM (Xiao et al., arXiv 2309.17453): the text is read in order with the keys and values of its first four tokens and of a
    recent window kept, at positions counted within the cache.

    The window is as long as the adapter's local window. Text is read in blocks of a quarter of it, for which the oldest tokens
    make room first, as in the released code; new tokens one by one.
    """

    @property
    def bos(self) -> int | None:
        return None  # the start of the text is there

    @property
    def unit(self) -> int:
        return max(1, self.settings.sizes.local // 4)

    def open(self, memory: list[int]) -> Reading:
        reading = _Streaming(self.base, self.settings.sizes.local, self.unit)
        reading.extend(memory)
        return reading


class _Streaming(Reading):
    def __init__(self, base: Any, window: int, size: int) -> None:
        super().__init__(base)
        self.window, self.size, self.sinks = window, size, list[int]()

    def extend(self, memory: list[int]) -> None:
        if memory:
            self.feed(memory, 1)

    def feed(self, ids: list[int], keep: int) -> torch.Tensor:
        kept = []
        for start in range(0, len(ids), self.size):
            block = ids[start : start + self.size]
            new = SINKS - len(self.sinks)
            self.sinks = self.sinks + block[: max(0, new)]
            if new > 0:
                kept.append(run(self.base, self.sinks, 0, [], len(block[:new]))[0])
                self.position, block = len(self.sinks), block[new:]
            if block:
                kept.append(self._feed_block(block))
            kept = [torch.cat(kept)[-keep:]]
        return kept[0]

    def _feed_block(self, block: list[int]) -> torch.Tensor:
        room = self.window - len(block)
        held = min(room, self.layers[0][0].shape[2]) if self.layers else 0
        # rotary attention sees differences of positions only, so the sinks are moved instead of everything else
        _, past = run(self.base, self.sinks, self.position - held - SINKS, [], 1)
        if held:
            recent = [(keys[:, :, -held:], values[:, :, -held:]) for keys, values in self.layers]
            past = joined([past, recent])
        logits, layers = run(self.base, block, self.position, past, len(block))
        self.layers = [(keys[:, :, SINKS:], values[:, :, SINKS:]) for keys, values in layers]
        self.position += len(block)
        return logits
