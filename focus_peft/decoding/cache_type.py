"""Which cache reads as the settings say."""

from __future__ import annotations

from ..passes.settings import Settings
from .cache import FocusCache
from .in_front_cache import InFrontCache
from .reading_cache import ReadingCache


def cache_type(settings: Settings) -> type[FocusCache] | type[ReadingCache]:
    """Candidates stand for chunks, choose those that are read in full, or both."""
    if settings.config.read_chunks is None:
        return FocusCache
    return InFrontCache if settings.config.keep_candidates else ReadingCache
