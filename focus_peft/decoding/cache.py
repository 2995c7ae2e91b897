"""`FocusCache`: what transformers' generation loops hold as their cache.

The loops hand over the whole input first and new tokens after. `FocusCache.read` splits what it gets into chunks and
local windows, and predicts what follows (method: one prediction, 1-4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..passes.chunking import cut
from ..passes.prompt_region import PromptRegion
from .local_states import LocalStates
from .prediction import Predictor
from .stream import Stream, rows_per_document


# Candidates, over all chunks, that one local pass may see where many tokens are read at once
CANDIDATE_BUDGET = 2048


@dataclass
class _Snapshot:
    """The state before a spill, for tokens that may yet be taken back (assisted decoding)."""

    stream: Stream
    chunks: int
    local: LocalStates


class FocusCache(Predictor):
    """Owns what has been read, and takes in what the loops hand over."""

    _snapshots: list[_Snapshot]

    # What the generation loops ask of a cache

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Stream r goes on from stream `beam_idx[r]`, which reads the same document."""
        origin = beam_idx.tolist()
        if self.base_cache is not None:
            self.base_cache.reorder_cache(beam_idx)
        if origin == list(range(len(origin))):
            return
        with torch.inference_mode(False), torch.no_grad():
            self.local.store.select_rows(beam_idx)
        old = self.streams
        self.streams = [old[o].clone(old[r].member) for r, o in enumerate(origin)]
        group = self._members
        for document, region in enumerate(self.regions):
            region.reorder([old[o].member for o in origin[document * group : (document + 1) * group]])

    def crop(self, max_length: int) -> None:
        """Take back the last `-max_length` tokens (or, if positive, all after the first `max_length`)."""
        length = self._take_back(max_length)
        if length is None:
            return
        while self._snapshots and len(self._snapshots[-1].stream.ids) >= length:
            before = self._snapshots.pop()
            self.streams, self.local = [before.stream], before.local
            self.chunks.truncate(before.chunks)
            self._clear_region(0)
        stream = self.streams[0]
        del stream.ids[length:]
        while stream.anchors and stream.anchors[-1][0] > length:
            _, stream.prompt_start = stream.anchors.pop()
            self._clear_region(0)
        stream.cached = min(stream.cached, len(self._window(stream)))
        stream.fed = min(stream.fed, len(self._prompt(stream)))
        self.regions[0].truncate(stream.fed)

    # Reading

    def _predict(self, newest: int) -> torch.Tensor:
        self.split(newest)
        return super()._predict(newest)

    def _check_read(self, new: Sequence[Sequence[int]], newest: int) -> None:
        """Raise a ValueError if new tokens would leave the positions of the model. Nothing has been read of them."""
        for stream, ids in zip(self.streams, new):
            if stream.fresh:  # all but the newest come at once
                first = len(ids) - newest + 1
                chunks = len(stream.rows) + self.settings.chunks_of(first)
                self.settings.check_room(chunks, newest - 1, min(self.settings.sizes.local, first))
            else:
                self.settings.check_room(len(stream.rows), len(ids), stream.window_length)

    def _open(self, rows: int) -> None:
        group = rows_per_document(rows, self.documents)
        seen = [self.chunks.of_document(document) for document in range(self.documents)]
        self.streams = [Stream(row // group, row % group, rows=list(seen[row // group])) for row in range(rows)]
        self.regions = [PromptRegion(group) for _ in range(self.documents)]

    def _newest_at_once(self) -> int:
        """Each has its own candidates, and none may spill but the first."""
        if self.settings.exact:
            return 1
        room = min(min(self._limit(s) - 1 - s.window_length, self._prompt_room(s)) for s in self.streams)
        chunks = max(len(stream.rows) for stream in self.streams)
        return max(1, min(room, CANDIDATE_BUDGET // chunks if chunks else room))

    # Splitting

    def split(self, newest: int) -> None:
        """Where windows are too long, turn their oldest tokens into chunks, and start over behind them.

        What is handed over first keeps its last `local_size` tokens; later, whole chunks go.
        """
        sizes = self.settings.sizes
        pieces: dict[tuple[int, int, tuple[int, ...]], int] = {}  # (document, index, chunk) -> number of its row
        for stream in self.streams:
            length = stream.window_length - newest + 1  # when the first of the newest tokens came
            spilled = max(0, length - sizes.local) if stream.fresh else 0
            chunks = len(stream.rows)
            while not stream.fresh and length - spilled >= self.settings.window_limit(chunks):
                spilled += min(sizes.chunk, length - spilled - sizes.local)
                chunks += 1
            stream.fresh = False
            if not spilled and stream.is_split:
                self._shorten_prompt(stream, newest)
                continue
            if self.may_crop and spilled and len(self.streams) == 1 and stream.is_split:
                self._remember(stream, newest)
            for chunk in cut(stream.ids[stream.start : stream.start + spilled], sizes.chunk):
                key = (stream.document, len(stream.rows), tuple(chunk))
                if key not in pieces:  # streams with the same chunk share its row
                    pieces[key] = len(self.chunks) + len(pieces)
                stream.rows.append(pieces[key])
            stream.start += spilled
            stream.split_at = len(stream.ids) - newest
            stream.prompt_start = max(stream.start, len(stream.ids) - newest + 1 - sizes.prompt)
            prompt = len(self._prompt(stream)) - newest + 1
            stream.local_start = self.chunks.frames.local_start(len(stream.rows), prompt)
            stream.cached = 0
            stream.anchors = []
            stream.is_split = True
            self._clear_region(stream.document)
        self.chunks.add(list(pieces), newest)

    def _shorten_prompt(self, stream: Stream, newest: int) -> None:
        """A dynamic prompt that has grown out of its room starts over with its last P tokens."""
        if not stream.rows or len(self._prompt(stream)) <= self.settings.prompt_room:
            return
        length = len(stream.ids) - newest + 1
        stream.anchors.append((length, stream.prompt_start))
        stream.prompt_start = max(stream.start, length - self.settings.sizes.prompt)
        self._clear_region(stream.document)

    def _prompt_room(self, stream: Stream) -> int:
        """How many newest tokens a prompt takes before it has to be shortened, or again after it has been."""
        room, shortest = self.settings.prompt_room, self.settings.frames.nominal
        left = room - len(self._prompt(stream)) if stream.is_split else 0
        return left if left > 0 else room - shortest + 1

    def _remember(self, stream: Stream, newest: int) -> None:
        before = stream.clone(stream.member)
        del before.ids[len(before.ids) - newest :]
        self._snapshots.append(_Snapshot(before, len(self.chunks), self.local))
        self.local = LocalStates()
