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
from .cache import CANDIDATE_BUDGET, FocusCache
from .stream import Stream


# The last tokens of the dynamic prompt that look: chosen on development prompts (docs/reading.md)
LOOKING = 8


def score_chunks(
    reader: Reader, settings: Settings, chunks: SeenChunks, memory: Memory | None, streams: Sequence[Stream]
) -> list[torch.Tensor]:
    """The scores (chunks,) that streams are read by: what the last tokens of their prompts look at.

    Args: as for `look`. What has spilled from the windows joins the chunks first.
    """
    plain = replace(settings.config, decoding="streaming", read_chunks=None)
    settings = replace(settings, config=plain)  # each looks at new candidates of its own
    split(reader, settings, chunks, memory, streams)
    longest = min(LOOKING, settings.sizes.prompt)
    looking = [min(longest, stream.window_length) for stream in streams]
    scores = [torch.zeros(0)] * len(streams)
    for tokens in sorted(set(looking)):  # on its own, a stream would be scored alike
        members = [number for number, count in enumerate(looking) if count == tokens]
        found = look(reader, settings, chunks, memory, [streams[number] for number in members], tokens)
        for number, score in zip(members, found):
            scores[number] = score
    return scores


def split(
    reader: Reader, settings: Settings, chunks: SeenChunks, memory: Memory | None, streams: Sequence[Stream]
) -> None:
    """What does not fit the windows of streams, which read one document, joins its chunks."""
    cache = _cache(reader, settings, chunks, memory, streams)
    cache.split(1)
    for stream, done in zip(streams, cache.streams):
        stream.rows, stream.start, stream.fresh = done.rows, done.start, False


def look(
    reader: Reader,
    settings: Settings,
    chunks: SeenChunks,
    memory: Memory | None,
    streams: Sequence[Stream],
    tokens: int = 1,
) -> list[torch.Tensor]:
    """The share of attention that each chunk's candidate has from the end of each stream, (chunks,) each.

    Args:
        reader, settings, memory: What it is read with.
        chunks (`SeenChunks`): Of the document that all streams read.
        streams (`Sequence[Stream]`): They have been split, and hold at least as many tokens in their windows.
        tokens (`int`): How many last tokens look, each at candidates of its own; the mean is taken.
    """
    most = max(len(stream.rows) for stream in streams)
    if not most:
        return [torch.zeros(0) for _ in streams]
    sizes = replace(settings.sizes, prompt=settings.sizes.prompt - tokens + 1)  # the last token's has its size
    cache = _cache(reader, replace(settings, sizes=sizes), chunks, memory, streams)
    cache.records_attention = True
    ends = [stream.ids[-tokens:] for stream in streams]
    for stream in cache.streams:
        del stream.ids[-tokens:]
    at_once = max(1, CANDIDATE_BUDGET // most)
    sums = [torch.zeros(len(stream.rows)) for stream in streams]
    for first in range(0, tokens, at_once):
        newest = [end[first : first + at_once] for end in ends]
        cache.read(newest, len(newest[0]))
        sums = [total + len(newest[0]) * shares for total, shares in zip(sums, cache.chunk_attention)]
    return [total / tokens for total in sums]


def _cache(
    reader: Reader, settings: Settings, chunks: SeenChunks, memory: Memory | None, streams: Sequence[Stream]
) -> FocusCache:
    """A cache that goes on with streams as they are now, without their keys and values."""
    cache = FocusCache(reader, settings, 1, memory)
    cache.chunks, cache.base_cache = chunks, None
    cache.streams = [
        Stream(0, number, ids=list(stream.ids), rows=list(stream.rows), start=stream.start, fresh=stream.fresh)
        for number, stream in enumerate(streams)
    ]
    cache.regions = [PromptRegion(len(streams))]
    return cache
