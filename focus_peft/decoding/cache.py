"""`FocusCache`: what transformers' generation loops hold as their cache, and how a forward call becomes the two
passes.

The loops hand over the whole input first and new tokens after. `FocusCache.read` splits what it gets, runs the chunk
pass (prompts and candidates in all chunk rows), gathers the candidates, and runs the local pass behind them (method:
one prediction, 1-4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from ..frozen.attention_record import AttentionRecord
from ..kv.pass_caches import PassCache
from ..kv.store import LayerStates
from ..memory.memory import Memory
from ..memory.seen_chunks import SeenChunks
from ..passes.chunk_pass import candidate_places, select_candidates
from ..passes.chunking import cut, with_bos
from ..passes.inputs import PassInput
from ..passes.one_pass import PASS_TOKENS, STREAM_TOKENS, read_in_one_pass
from ..passes.prompt_region import Placement, PromptRegion
from ..passes.reader import Reader
from ..passes.settings import Settings
from .local_states import LocalStates
from .loop_cache import LoopCache
from .stream import Stream


# Candidates, over all chunks, that one local pass may see where many tokens are read at once
CANDIDATE_BUDGET = 2048


@dataclass
class _Snapshot:
    """The state before a spill, for tokens that may yet be taken back (assisted decoding)."""

    stream: Stream
    chunks: int
    local: LocalStates
    candidates: list[LayerStates] | None


@dataclass
class _Renewal:
    """Candidates, and the number of tokens when they were made: some are kept for more than one token, and may come
    back.
    """

    length: int
    candidates: list[LayerStates]
    local_start: int


class FocusCache(LoopCache):
    """Owns what has been read: chunks, streams, and their local keys and values.

    Attributes:
        chunk_attention (`list[torch.Tensor]`): What the newest tokens of each stream looked at: the mean share of
            attention, over tokens, heads and layers, of each of their candidates, (chunks,) each. Empty, if nothing
            asked for it.

    Args:
        reader (`Reader`): Runs the passes.
        settings (`Settings`): Window sizes and the way to decode.
        documents (`int`): Rows of the input before the loops expand them; the expansions of a row share its chunks.
        memory (`Memory`, *optional*): Chunks that stand before everything that is handed over.
        progress (`bool`): Show a progress bar while chunks are read.
        document (`int`, *optional*): Only this document of the memory is asked about.
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
        super().__init__(reader, settings, documents, memory)
        self.chunks = SeenChunks(reader, settings, memory, document, progress)
        self.streams: list[Stream] = []
        self.regions: list[PromptRegion] = []  # one for each document
        self.local = LocalStates()
        self.candidates: list[LayerStates] | None = None  # per layer, (streams, kv_heads, newest * chunks, head_dim)
        if len(self.chunks):
            self.base_cache = None
        self._reads_in_parts = reader.reads_in_parts and self.chunks.ranks.size == 1 and not reader.sharded
        self.records_attention = False
        self.chunk_attention: list[torch.Tensor] = []
        self._snapshots: list[_Snapshot] = []
        self._renewals: list[_Renewal] = []  # of the last read, and the last one before it

    # What the generation loops ask of a cache

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Stream r goes on from stream `beam_idx[r]`, which reads the same document."""
        origin = beam_idx.tolist()
        if self.base_cache is not None:
            self.base_cache.reorder_cache(beam_idx)
        if origin == list(range(len(origin))):
            return
        old = self.streams
        self.streams = [old[o].clone(old[r].member) for r, o in enumerate(origin)]
        self.local.store.select_rows(beam_idx)
        if self.candidates is not None:
            self.candidates = [(k[beam_idx.to(k.device)], v[beam_idx.to(v.device)]) for k, v in self.candidates]
        group = self._members
        for document, region in enumerate(self.regions):
            region.reorder([old[o].member for o in origin[document * group : (document + 1) * group]])

    def crop(self, max_length: int) -> None:
        """Take back the last `-max_length` tokens (or, if positive, all after the first `max_length`)."""
        remove = self._taken_back(max_length)
        if remove <= 0:
            return
        if self.base_cache is not None:
            self.base_cache.crop(-remove)
        self.tokens -= remove
        length = len(self.streams[0].ids) - remove
        while self._snapshots and len(self._snapshots[-1].stream.ids) >= length:
            before = self._snapshots.pop()
            self.streams, self.local = [before.stream], before.local
            self.candidates = before.candidates
            self.chunks.truncate(before.chunks)
            self._clear_region(0)
        stream = self.streams[0]
        stream.since = max(0, stream.since - (len(stream.ids) - length))
        del stream.ids[length:]
        if not stream.since:
            stream.chosen = None
        while stream.anchors and stream.anchors[-1][0] > length:
            _, stream.prompt_start = stream.anchors.pop()
            self._clear_region(0)
        stream.cached = min(stream.cached, len(self._window(stream)))
        while self._renewals and self._renewals[-1].length > length:
            self._renewals.pop()
        if self._renewals and stream.since:
            self.candidates, stream.local_start = self._renewals[-1].candidates, self._renewals[-1].local_start
        stream.fed = min(stream.fed, len(self._prompt(stream)))
        self.regions[0].truncate(stream.fed)

    # Reading

    def read(
        self,
        new: Sequence[Sequence[int]],
        newest: int,
        width: int | None = None,
        base_call: Callable[[Cache], Any] | None = None,
    ) -> torch.Tensor | Any:
        """As `LoopCache.read`: the chunk pass, and the local pass behind its candidates."""
        self._snapshots.clear()
        del self._renewals[:-1]
        if not self.streams:
            self._open(len(new))
        self._check_read(new, newest)
        self.tokens += width or max(map(len, new))
        if self.base_cache is not None:
            if base_call is not None and all(self._stays_base(s, len(ids)) for s, ids in zip(self.streams, new)):
                for stream, ids in zip(self.streams, new):
                    stream.ids += ids
                    stream.fresh = False
                return base_call(self.base_cache)
            self.base_cache = None
        tails = [list(ids[len(ids) - newest :]) for ids in new]
        for stream, ids in zip(self.streams, new):
            stream.ids += ids[: len(ids) - newest]
        logits: list[torch.Tensor] = []
        done = 0
        with self.memory_lock(), torch.no_grad():
            while done < newest:
                count = min(newest - done, self._newest_at_once())
                for stream, tail in zip(self.streams, tails):
                    stream.ids += tail[done : done + count]
                self._split(count)
                logits.append(self._predict(count))
                done += count
        return torch.cat(logits, dim=1)

    def _check_read(self, new: Sequence[Sequence[int]], newest: int) -> None:
        """Raise a ValueError if new tokens would leave the positions of the model. Nothing has been read of them."""
        sizes = self.settings.sizes
        for stream, ids in zip(self.streams, new):
            if stream.fresh:  # all but the newest come at once
                beyond = max(0, len(ids) - newest + 1 - sizes.local)
                chunks = len(stream.rows) + -(-beyond // sizes.chunk)
                self.settings.check_room(chunks, newest - 1, min(sizes.local, len(ids) - newest + 1))
            else:
                self.settings.check_room(len(stream.rows), len(ids), stream.window_length)

    def _open(self, rows: int) -> None:
        group = self._group(rows)
        seen = [self.chunks.of_document(document) for document in range(self.documents)]
        self.streams = [Stream(row // group, row % group, rows=list(seen[row // group])) for row in range(rows)]
        self.regions = [PromptRegion(group) for _ in range(self.documents)]

    @property
    def _members(self) -> int:
        """Streams of each document."""
        return len(self.streams) // self.documents

    def _newest_at_once(self) -> int:
        """How many newest tokens one pass may take: each has its own candidates, and none may spill but the first."""
        settings = self.settings
        if settings.exact or settings.config.refresh_interval > 1 or settings.config.top_chunks is not None:
            return 1
        room = min(min(self._limit(s) - 1 - s.window_length, self._prompt_room(s)) for s in self.streams)
        chunks = max(len(stream.rows) for stream in self.streams)
        return max(1, min(room, CANDIDATE_BUDGET // chunks if chunks else room))

    def _window(self, stream: Stream) -> list[int]:
        return with_bos(stream.ids[stream.start :], self.settings.bos if stream.rows else None)

    def _prompt(self, stream: Stream) -> list[int]:
        return with_bos(stream.ids[stream.prompt_start :], self.settings.bos)

    def _clear_region(self, document: int) -> None:
        """Forget the prompts in the chunk rows of a document; they will be fed again."""
        self.regions[document].clear()
        for stream in self.streams:
            if stream.document == document:
                stream.fed = 0

    # Splitting

    def _split(self, newest: int) -> None:
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
            if self.may_crop and spilled and len(self.streams) == 1 and stream.since:
                self._remember(stream, newest)
            for chunk in cut(stream.ids[stream.start : stream.start + spilled], sizes.chunk):
                key = (stream.document, len(stream.rows), tuple(chunk))
                if key not in pieces:  # streams with the same chunk share its row
                    pieces[key] = len(self.chunks) + len(pieces)
                stream.rows.append(pieces[key])
            stream.start += spilled
            stream.prompt_start = max(stream.start, len(stream.ids) - newest + 1 - sizes.prompt)
            prompt = len(self._prompt(stream)) - newest + 1
            stream.local_start = self.chunks.frames.local_start(len(stream.rows), prompt)
            stream.cached = stream.since = 0
            stream.chosen = None
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
        self._snapshots.append(_Snapshot(before, len(self.chunks), self.local, self.candidates))
        self.local = LocalStates()

    # Predicting

    def _predict(self, newest: int) -> torch.Tensor:
        """Logits (streams, `newest`, vocabulary) for the last tokens of every stream."""
        interval = self.settings.config.refresh_interval
        renewed = [number for number, s in enumerate(self.streams) if s.rows and s.since % interval == 0]
        if renewed and self._fits_one_pass(newest):
            logits = self._one_pass(newest)
        else:
            if renewed:
                self._renew(renewed, newest)
            logits = self._local_pass(newest)
        for stream in self.streams:
            stream.cached = len(self._window(stream))
            stream.since += newest
        return logits

    def _place_prompts(self, newest: int) -> dict[int, Placement]:
        """Place what is new of the prompts behind the chunks of each document."""
        if self.memory is not None and not self.memory.lease(self):
            for document in range(self.documents):
                self._clear_region(document)
        if self.settings.config.top_chunks is not None:
            for stream in self.streams:
                if stream.chosen is None:  # rows that were left alone lack the prompt's last tokens
                    self._clear_region(stream.document)
        prompts = [self._prompt(stream) for stream in self.streams]
        fed = [stream.fed for stream in self.streams]
        self.chunks.ranks.check_alike("what is read is", (prompts, fed, newest, self.settings.shared))
        placements = {}
        for document, region in enumerate(self.regions):
            members = slice(document * self._members, (document + 1) * self._members)
            placements[document] = region.place(prompts[members], fed[members], newest)
        return placements

    def _keep_prompts(self, placements: dict[int, Placement]) -> None:
        """What was placed has been read: all of each prompt but its last token is ordinary."""
        for document, region in enumerate(self.regions):
            region.keep(placements[document])
        for stream in self.streams:
            stream.fed = len(self._prompt(stream)) - 1

    def _renew(self, renewed: list[int], newest: int) -> None:
        """Run the chunk pass, and gather the candidates of the streams in `renewed`; the others keep theirs."""
        placements = self._place_prompts(newest)
        asked: Sequence[int] = range(len(self.chunks))
        if self.settings.config.top_chunks is not None:
            asked = sorted({stream.rows[chunk] for stream in self.streams for chunk in stream.renewed_chunks})
        pool = self.chunks.candidates(placements, self._members * newest, asked)
        self._keep_prompts(placements)
        kept: dict[int, Sequence[int]] = {}
        for n, stream in enumerate(self.streams):
            chunks = range(len(stream.rows))
            kept[n] = chunks if n not in renewed else sorted(set(chunks) - set(stream.renewed_chunks))
        places = {number: place for place, number in enumerate(asked)}
        seen = [[places.get(row, 0) for row in stream.rows] for stream in self.streams]
        members = [stream.member for stream in self.streams]
        self.candidates = select_candidates(pool, seen, members, newest, kept, self.candidates)
        if self.settings.exact:
            for stream in (self.streams[number] for number in renewed):
                prompt = len(self._prompt(stream))
                stream.local_start = self.chunks.frames.local_start(len(stream.rows), prompt)
        if self.may_crop and len(self.streams) == 1 and self.settings.config.refresh_interval > 1:
            stream = self.streams[0]
            self._renewals.append(_Renewal(len(stream.ids), self.candidates, stream.local_start))

    def _local_pass(self, newest: int) -> torch.Tensor:
        """Run the local pass behind the candidates that there are."""
        chunks = [len(stream.rows) for stream in self.streams]
        prefix = max(chunks) * newest
        inputs, cache = self._open_local(newest)
        if prefix:
            cache.prefix = self.candidates
        record = AttentionRecord(prefix, newest) if prefix and self._looks else None
        logits = self.reader.run(inputs, cache, logits=newest, record=record)
        if record is not None:
            shares = record.mean.unflatten(1, (newest, -1)).sum(1)  # each token sees candidates of its own
            self.chunk_attention = [share[len(share) - count :] for share, count in zip(shares, chunks)]
            self._choose()
        return logits

    def _open_local(self, newest: int) -> tuple[PassInput, PassCache]:
        exact = self.settings.exact
        return self.local.open(
            [self._window(stream) for stream in self.streams],
            [0 if exact else stream.cached for stream in self.streams],
            [stream.local_start for stream in self.streams],
            [len(stream.rows) for stream in self.streams],
            newest,
            everyone_sees=exact,
        )

    def _fits_one_pass(self, newest: int) -> bool:
        """Whether chunk pass and local pass can be made in one, and that is shorter (`one_pass`).

        In exact mode the local window is read again as a whole; candidates that are kept, attention that is recorded
        and chunks of other processes need the chunk pass by itself.
        """
        settings = self.settings
        kept = settings.exact or settings.config.refresh_interval > 1 or settings.config.top_chunks is not None
        if kept or self._looks or not self._reads_in_parts:
            return False
        new = max(max(len(self._window(s)) - s.cached, len(self._prompt(s)) - s.fed) for s in self.streams)
        return new <= STREAM_TOKENS and len(self.chunks) * self._members * (new + newest) <= PASS_TOKENS

    def _one_pass(self, newest: int) -> torch.Tensor:
        placements = self._place_prompts(newest)
        rows, members = [stream.rows for stream in self.streams], [stream.member for stream in self.streams]
        logits = read_in_one_pass(
            self.reader,
            self.chunks.batches(placements),
            self._members * newest,
            self._open_local(newest),
            candidate_places(rows, members, newest),
        )
        self._keep_prompts(placements)
        self.candidates = None
        return logits[:, -newest:]

    @property
    def _looks(self) -> bool:
        """Whether it matters what the last token looks at."""
        chooses = self.settings.config.top_chunks is not None and any(stream.chosen is None for stream in self.streams)
        return chooses or self.records_attention

    def _choose(self) -> None:
        """The chunks that a stream looked at most when it was split are renewed from now on; the earlier of two that
        are even.
        """
        if self.settings.config.top_chunks is None:
            return
        for stream, mass in zip(self.streams, self.chunk_attention):
            if stream.chosen is None and stream.rows:
                order = mass.sort(descending=True, stable=True).indices
                stream.chosen = sorted(order[: self.settings.config.top_chunks].tolist())
