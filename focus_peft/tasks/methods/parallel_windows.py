"""Parallel context windows: chunks are read apart, and all their tokens stand before the local window."""

from __future__ import annotations

from typing import Any

from ...passes.chunking import cut
from .cached import CachedMethod, Reading
from .cached_pass import joined, run


class ParallelWindows(CachedMethod):
    """Parallel context windows (Ratner et al., arXiv 2212.10947): the adapter's chunks, each read on its own from
    position 0, and a local window that attends to all of their tokens, behind the longest. No twins, and nothing is
    condensed.
    """

    @property
    def unit(self) -> int:
        return self.settings.sizes.chunk

    def empty(self) -> Reading:
        return _Parallel(self.base, self.unit)


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
