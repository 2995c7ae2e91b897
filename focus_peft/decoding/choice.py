"""Which chunks are worth reading in full: those whose candidates the end of the input looks at most."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..memory.memory import Memory
from ..memory.seen_chunks import SeenChunks
from ..passes.prompt_region import PromptRegion
from ..passes.reader import Reader
from ..passes.settings import Settings
from .cache import FocusCache
from .stream import Stream


def best_chunks(scores: torch.Tensor, count: int) -> list[int]:
    """The numbers of the `count` chunks with the highest scores (chunks,), ascending; the earlier of two that are
    even.
    """
    return sorted(scores.sort(descending=True, stable=True).indices[:count].tolist())


def look(
    reader: Reader, settings: Settings, chunks: SeenChunks, memory: Memory | None, streams: Sequence[Stream]
) -> list[torch.Tensor]:
    """What the last token of each stream looks at: shares of attention, (chunks,) each.

    All streams read one document, whose chunks these are. What spills from their windows joins the chunks, and their
    prompts are their ends as they are now.
    """
    cache = FocusCache(reader, settings, 1, memory)
    cache.chunks, cache.base_cache, cache.records_attention = chunks, None, True
    cache.streams = [
        Stream(0, number, ids=stream.ids[:-1], rows=list(stream.rows), start=stream.start, fresh=stream.fresh)
        for number, stream in enumerate(streams)
    ]
    cache.regions = [PromptRegion(len(streams))]
    cache.read([stream.ids[-1:] for stream in streams], 1)
    for stream, split in zip(streams, cache.streams):
        stream.rows, stream.start, stream.fresh = split.rows, split.start, False
    return cache.chunk_attention
