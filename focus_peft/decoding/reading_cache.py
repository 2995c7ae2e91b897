"""`ReadingCache`: candidates choose chunks, and the frozen model reads those in full (`read_chunks`).

The chunk pass runs once behind the input. The chunks that its end looks at most stand in front of the local window,
and the base model goes on from there with a cache of its own. The choice is made again when the window spills, and
when a conversation goes on with a new turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import cast

import torch
from transformers.cache_utils import DynamicCache

from ..frozen.attention_record import best_chunks
from ..memory.memory import Memory
from ..memory.seen_chunks import SeenChunks
from ..passes.chunking import pad_left
from ..passes.reader import Reader
from ..passes.settings import Settings
from .choice import look
from .loop_cache import LoopCache, record_past
from .reading_stream import ReadingStream
from .stream import rows_per_document


@dataclass
class _Snapshot:
    """The state before a choice, for tokens that may yet be taken back (assisted decoding)."""

    stream: ReadingStream
    chunks: int
    text_cache: DynamicCache | None
    mask: torch.Tensor


class ReadingCache(LoopCache):
    """What has been read: the chunks to choose from, and the base model's cache of the text that was chosen.

    Args:
        reader, settings, documents, memory, document: As for `LoopCache`.
        progress (`bool`): Show a progress bar while chunks are read.

    Attributes:
        keeps_chunks (`bool`): Whether the choice may be made again. If not, what chunks take is freed after the first.
    """

    def __init__(
        self,
        reader: Reader,
        settings: Settings,
        documents: int,
        memory: Memory | None = None,
        progress: bool = False,
        document: int | None = None,
    ) -> None:
        super().__init__(reader, settings, documents, memory, document)
        held = [None] * documents if memory is None else self.numbers
        self.chunks = [SeenChunks(reader, settings, memory, number, progress) for number in held]
        self.streams: list[ReadingStream] = []
        self.keeps_chunks = True
        self.text_cache: DynamicCache | None = None  # None: all of the texts is to be read
        self.mask = torch.zeros(0, 0, dtype=torch.long)  # (streams, columns of `text_cache`)
        if memory is not None:
            self.base_cache = None

    @property
    def read_chunks(self) -> list[list[int]]:
        """The chunks that each row reads in full, ascending; those of a memory are numbered first."""
        return [list(stream.read) for stream in self.streams]

    # What the generation loops ask of a cache

    def activate_past_recording(self) -> None:
        super().activate_past_recording()
        record_past(self.text_cache)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Stream r goes on from stream `beam_idx[r]`, which reads the same document."""
        for cache in (self.base_cache, self.text_cache):
            if cache is not None:
                cache.reorder_cache(beam_idx)
        origin = beam_idx.tolist()
        self.streams = [cast(ReadingStream, self.streams[o].clone(r)) for r, o in enumerate(origin)]
        self.mask = self.mask[origin] if self.text_cache is not None else self.mask

    def crop(self, max_length: int) -> None:
        """Take back the last `-max_length` tokens (or, if positive, all after the first `max_length`)."""
        length = self._take_back(max_length)
        if length is None:
            return
        while self._snapshots and len(self._snapshots[-1].stream.ids) >= length:
            before = self._snapshots.pop()
            self.streams = [before.stream]
            self.text_cache, self.mask = before.text_cache, before.mask
            self.chunks[0].truncate(before.chunks)
        (stream,) = self.streams
        if self.text_cache is not None:
            surplus = len(stream.ids) - length
            self.text_cache.crop(-surplus)
            self.mask = self.mask[:, : self.mask.shape[1] - surplus]
        del stream.ids[length:]

    def memory_lock(self) -> contextlib.AbstractContextManager:
        """None for the whole of `generate`: a memory is only asked while chunks are chosen."""
        return contextlib.nullcontext()

    # Reading

    def _read_newest(self, tails: Sequence[list[int]], turns: Sequence[bool]) -> list[torch.Tensor]:
        if any(turns):  # more than the newest tokens is new
            self.text_cache = None
        return super()._read_newest(tails, turns)

    def _newest_at_once(self) -> int:
        return min(self._limit(stream) - 1 - stream.window_length for stream in self.streams)

    def _open(self, rows: int) -> None:
        group = rows_per_document(rows, self.documents)
        rows_of = [chunks.of_document(0) for chunks in self.chunks for _ in range(group)]
        self.streams = [
            ReadingStream(row // group, row, rows=list(rows_of[row]), before=self._before(row // group))
            for row in range(rows)
        ]

    # Choosing

    def _remember(self, stream: ReadingStream) -> None:
        before = cast(ReadingStream, stream.clone(stream.member))
        del before.ids[-1]
        self._snapshots.append(_Snapshot(before, len(self.chunks[0]), self.text_cache, self.mask))

    def _choose(self, choosing: Sequence[bool]) -> None:
        """With windows as they are now."""
        assert self.chunks, "freed, though the choice is made again"
        streams = list(compress(self.streams, choosing))
        if self.may_crop and len(self.streams) == 1 and not streams[0].fresh:
            self._remember(streams[0])
        for document, chunks in enumerate(self.chunks):
            alike: dict[tuple[int, ...], list[ReadingStream]] = {}  # beams that start have one choice
            for stream in streams:
                if stream.document == document:
                    alike.setdefault(tuple(stream.ids), []).append(stream)
            if not alike:
                continue
            asking = [same[0] for same in alike.values()]
            scores = look(self.reader, self.settings, chunks, self.memory, asking)
            for same, score in zip(alike.values(), scores):
                first = same[0]
                read = best_chunks(score, cast(int, self.settings.config.read_chunks))
                lengths = [chunks.rows[row].length for row in first.rows]
                for stream in same:
                    stream.rows, stream.start, stream.fresh = list(first.rows), first.start, False
                    stream.split_at = len(stream.ids) - 1
                    stream.choose(read, lengths)
        if not self.keeps_chunks:
            self.chunks = []
        self.text_cache = None

    # The texts that the base model reads

    def _predict(self, newest: int) -> torch.Tensor:
        """By the base model, from the texts that are chosen."""
        if self.text_cache is None:
            rows = [stream.text(self.settings.bos) for stream in self.streams]
            self.text_cache = DynamicCache(config=self.reader.model.config)
            if self.may_crop:
                record_past(self.text_cache)
            self.mask = pad_left([[1] * len(row) for row in rows])
        else:
            rows = [stream.ids[-newest:] for stream in self.streams]
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(rows), newest)], dim=1)
        for stream in self.streams:
            stream.fresh = False
        self._check_room(int(self.mask.sum(1).max()))
        return self.reader.plain_logits(pad_left(rows), newest, self.mask, self.text_cache)

    def _check_room(self, places: int) -> None:
        """Raise a ValueError if a text of so many tokens leaves the positions of the model."""
        limit = self.settings.facts.max_positions
        if places > limit:
            raise ValueError(
                f"`read_chunks` is {self.settings.config.read_chunks}, and these chunks and the local window have "
                f"{places} tokens, but the model has {limit} positions; choose a smaller `read_chunks`."
            )
