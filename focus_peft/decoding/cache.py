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
from ..kv.store import KeyValueStore, LayerStates, round_up
from ..memory.memory import Memory
from ..memory.seen_chunks import SeenChunks
from ..passes.chunk_pass import select_candidates
from ..passes.chunking import cut, with_bos
from ..passes.local_pass import local_pass_input
from ..passes.prompt_region import PromptRegion
from ..passes.reader import Reader
from ..passes.settings import Settings
from .loop_cache import LoopCache
from .stream import Stream


# Candidates, over all chunks, that one local pass may see where many tokens are read at once
CANDIDATE_BUDGET = 2048


@dataclass
class _Snapshot:
    """The state before a spill, for tokens that may yet be taken back (assisted decoding)."""

    stream: Stream
    chunks: int
    local: KeyValueStore
    front: int
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
        self.local = KeyValueStore()
        self.front = 0  # column of the first local token in `local`; candidates stand before it
        self.candidates: list[LayerStates] | None = None  # per layer, (streams, kv_heads, newest * chunks, head_dim)
        if len(self.chunks):
            self.base_cache = None
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
        self.local.select_rows(beam_idx)
        if self.candidates is not None:
            self.candidates = [(k[beam_idx.to(k.device)], v[beam_idx.to(v.device)]) for k, v in self.candidates]
        group = len(old) // self.documents
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
            self.streams, self.local, self.front = [before.stream], before.local, before.front
            self.candidates = before.candidates
            self.chunks.truncate(before.chunks)
            self._clear_region(0)
        stream = self.streams[0]
        stream.since = max(0, stream.since - (len(stream.ids) - length))
        del stream.ids[length:]
        if not stream.since:
            stream.chosen = None
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

    def _open(self, rows: int) -> None:
        group = self._group(rows)
        seen = [self.chunks.of_document(document) for document in range(self.documents)]
        self.streams = [Stream(row // group, row % group, rows=list(seen[row // group])) for row in range(rows)]
        self.regions = [PromptRegion(group) for _ in range(self.documents)]

    def _newest_at_once(self) -> int:
        """How many newest tokens one pass may take: each has its own candidates, and none may spill but the first."""
        settings = self.settings
        if settings.exact or settings.config.refresh_interval > 1 or settings.config.top_chunks is not None:
            return 1
        room = min(self._limit - 1 - stream.window_length for stream in self.streams)
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
            while not stream.fresh and length - spilled >= self._limit:
                spilled += sizes.chunk
            stream.fresh = False
            if not spilled and stream.is_split:
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
            stream.is_split = True
            self._clear_region(stream.document)
        self.chunks.add(list(pieces), newest)

    def _remember(self, stream: Stream, newest: int) -> None:
        before = stream.clone(stream.member)
        del before.ids[len(before.ids) - newest :]
        self._snapshots.append(_Snapshot(before, len(self.chunks), self.local, self.front, self.candidates))
        self.local, self.front = KeyValueStore(), 0

    # Predicting

    def _predict(self, newest: int) -> torch.Tensor:
        """Logits (streams, `newest`, vocabulary) for the last tokens of every stream."""
        interval = self.settings.config.refresh_interval
        renewed = [number for number, s in enumerate(self.streams) if s.rows and s.since % interval == 0]
        if renewed:
            self._renew(renewed, newest)
        logits = self._local_pass(newest)
        for stream in self.streams:
            stream.since += newest
        return logits

    def _renew(self, renewed: list[int], newest: int) -> None:
        """Run the chunk pass, and gather the candidates of the streams in `renewed`; the others keep theirs."""
        if self.memory is not None and not self.memory.lease(self):
            for document in range(self.documents):
                self._clear_region(document)
        if self.settings.config.top_chunks is not None:
            for stream in self.streams:
                if stream.chosen is None:  # rows that were left alone lack the prompt's last tokens
                    self._clear_region(stream.document)
        group = len(self.streams) // self.documents
        prompts = [self._prompt(stream) for stream in self.streams]
        fed_before = [stream.fed for stream in self.streams]
        self.chunks.ranks.check_alike("what is read is", (prompts, fed_before, newest, self.settings.shared))
        placements = {}
        for document, region in enumerate(self.regions):
            members = slice(document * group, (document + 1) * group)
            fed = [stream.fed for stream in self.streams[members]]
            placements[document] = region.place(prompts[members], fed, newest)

        asked: Sequence[int] = range(len(self.chunks))
        if self.settings.config.top_chunks is not None:
            asked = sorted({stream.rows[chunk] for stream in self.streams for chunk in stream.renewed_chunks})
        pool = self.chunks.candidates(placements, group * newest, asked)
        for document, region in enumerate(self.regions):
            region.keep(placements[document])
        kept: dict[int, Sequence[int]] = {}
        for n, stream in enumerate(self.streams):
            chunks = range(len(stream.rows))
            kept[n] = chunks if n not in renewed else sorted(set(chunks) - set(stream.renewed_chunks))
        numbers = [stream.member for stream in self.streams]
        places = {number: place for place, number in enumerate(asked)}
        seen = [[places.get(row, 0) for row in stream.rows] for stream in self.streams]
        self.candidates = select_candidates(pool, seen, numbers, newest, kept, self.candidates)
        for number, (stream, prompt) in enumerate(zip(self.streams, prompts)):
            stream.fed = len(prompt) - 1
            if self.settings.exact and number in renewed:
                stream.local_start = self.chunks.frames.local_start(len(stream.rows), len(prompt))

        if self.may_crop and len(self.streams) == 1 and self.settings.config.refresh_interval > 1:
            stream = self.streams[0]
            self._renewals.append(_Renewal(len(stream.ids), self.candidates, stream.local_start))

    def _local_pass(self, newest: int) -> torch.Tensor:
        exact = self.settings.exact
        windows = [self._window(stream) for stream in self.streams]
        chunks = [len(stream.rows) for stream in self.streams]
        prefix, longest = max(chunks) * newest, max(map(len, windows))
        if prefix > self.front:
            more = round_up(prefix - self.front)
            self.local.reserve(len(windows), 0, front=more)
            self.front += more
        if self.front + longest + 1 > self.local.columns:
            self.local.reserve(len(windows), round_up(self.front + longest + longest // 4 + 1))
        inputs = local_pass_input(
            windows,
            [0 if exact else stream.cached for stream in self.streams],
            [stream.local_start for stream in self.streams],
            chunks,
            newest,
            everyone_sees=exact,
            front=self.front,
            trash=self.local.columns - 1,
        )
        cache = PassCache(
            self.local,
            slice(0, len(windows)),
            inputs.columns,
            slice(inputs.read_start, self.front + longest),
            prefix=self.candidates if prefix else None,
            prefix_end=self.front,
        )
        record = AttentionRecord(prefix, newest) if prefix and self._looks else None
        logits = self.reader.run(inputs, cache, logits=newest, record=record)
        for stream, window in zip(self.streams, windows):
            stream.cached = len(window)
        if record is not None:
            shares = record.mean.unflatten(1, (newest, -1)).sum(1)  # each token sees candidates of its own
            self.chunk_attention = [share[len(share) - count :] for share, count in zip(shares, chunks)]
            self._choose()
        return logits

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
