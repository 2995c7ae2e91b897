"""StreamingLLM: attention sinks and a window that slides."""

from __future__ import annotations

from typing import Any

import torch

from .cached import CachedMethod, Reading
from .cached_pass import joined, run


# Tokens at the start of a text that StreamingLLM keeps
SINKS = 4


class StreamingLLM(CachedMethod):
    """StreamingLLM (Xiao et al., arXiv 2309.17453): the text is read in order with the keys and values of its first
    four tokens and of a recent window kept, at positions counted within the cache.

    The window is as long as the adapter's local window. Text is read in blocks of a quarter of it, for which the
    oldest tokens make room first, as in the released code; new tokens one by one.
    """

    @property
    def bos(self) -> int | None:
        return None  # the start of the text is there

    @property
    def unit(self) -> int:
        return max(1, self.settings.sizes.local // 4)

    def empty(self) -> Reading:
        return _Streaming(self.base, self.settings.sizes.local, self.unit)


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
