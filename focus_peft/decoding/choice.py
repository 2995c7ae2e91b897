"""Which chunks are worth reading in full: those whose candidates the end of the input looks at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..memory.memory import Memory
from ..memory.seen_chunks import SeenChunks
from ..passes.prompt_region import PromptRegion
from ..passes.reader import Reader
from ..passes.settings import Settings
from .cache import FocusCache
from .stream import Stream


def look(
    reader: Reader, settings: Settings, chunks: SeenChunks, memory: Memory | None, streams: Sequence[Stream]
) -> list[torch.Tensor]:
    """The share of attention that each chunk's candidate has from the last token of each stream, (chunks,) each.

    What has spilled from the windows joins the chunks first.

    Args:
        reader, settings, memory: What it is read with.
        chunks (`SeenChunks`): Of the document that all streams read.
        streams (`Sequence[Stream]`): Without keys and values of their own.
    """
    plain = replace(settings, config=replace(settings.config, read_chunks=None))
    cache = FocusCache(reader, plain, 1, memory)
    cache.chunks, cache.base_cache = chunks, None
    cache.streams = [
        Stream(0, number, ids=list(stream.ids), rows=list(stream.rows), start=stream.start, fresh=stream.fresh)
        for number, stream in enumerate(streams)
    ]
    cache.regions = [PromptRegion(len(streams))]
    cache.split(1)
    for stream, done in zip(streams, cache.streams):
        stream.rows, stream.start, stream.fresh = list(done.rows), done.start, False
    if not any(stream.rows for stream in streams):
        return [torch.zeros(0) for _ in streams]
    newest = [[stream.ids.pop()] for stream in cache.streams]
    cache.records_attention = True
    cache.read(newest, 1)
    return cache.chunk_attention
