"""`InFrontCache`: candidates stand for all chunks, and the chunks that are looked at most are there in full as well
(`read_chunks` with `keep_candidates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import cast

from ..frozen.attention_record import best_chunks
from ..passes.chunking import with_bos
from .cache import FocusCache
from .reading_stream import ReadingStream
from .stream import Stream


class InFrontCache(FocusCache):
    """A `FocusCache` whose local windows have some chunks in full in front of them, behind the candidates of all.

    They are chosen when a window is split, and with each new turn, which splits it anew: by what its newest token
    looks at with the window alone.
    """

    @property
    def read_chunks(self) -> list[list[int]]:
        """The chunks that each row reads in full, ascending; those of a memory are numbered first."""
        return [list(stream.read) for stream in self._reading]

    @property
    def _reading(self) -> list[ReadingStream]:
        return cast(list[ReadingStream], self.streams)

    def _open(self, rows: int) -> None:
        super()._open(rows)
        self.streams = [ReadingStream(**vars(s), before=self._before(s.document)) for s in self.streams]

    def _window(self, stream: Stream) -> list[int]:
        window = cast(ReadingStream, stream).in_full + stream.ids[stream.start :]
        return with_bos(window, self.settings.bos if stream.rows else None)

    def _choose(self, choosing: Sequence[bool]) -> None:
        """With windows that are split anew and nothing in front; the newest token is read again behind its choice."""
        for stream in compress(self._reading, choosing):
            if self.may_crop and len(self.streams) == 1 and stream.is_split:
                self._remember(stream, 1)
            stream.is_split, stream.in_full = False, []
        self.records_attention = True
        self._predict(1)
        self.records_attention = False
        for stream, chooses, shares in zip(self._reading, choosing, self.chunk_attention):
            if chooses:
                read = best_chunks(shares, cast(int, self.settings.config.read_chunks))
                stream.choose(read, [self.chunks.rows[row].length for row in stream.rows])
                stream.cached = 0
            else:
                stream.cached -= 1
