"""Which cache reads as the settings say."""

from __future__ import annotations

from ..memory.memory import Memory
from ..passes.reader import Reader
from ..passes.settings import Settings
from .cache import FocusCache
from .in_front_cache import InFrontCache
from .loop_cache import LoopCache
from .reading_cache import ReadingCache


def make_cache(
    reader: Reader,
    settings: Settings,
    documents: int,
    memory: Memory | None = None,
    progress: bool = False,
    document: int | None = None,
) -> LoopCache:
    """Candidates stand for chunks, choose those that are read in full, or both.

    Args: as of `ReadingCache`.
    """
    kind: type[FocusCache] | type[ReadingCache] = FocusCache
    if settings.config.read_chunks is not None:
        kind = InFrontCache if settings.config.keep_candidates else ReadingCache
    return kind(reader, settings, documents, memory, progress, document)
