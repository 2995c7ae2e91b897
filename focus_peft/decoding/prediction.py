"""How the next token is predicted: the chunk pass (prompts and candidates in all chunk rows), the candidates gathered,
and the local pass behind them; for a streaming token, all of it in one pass.
"""

from __future__ import annotations

import torch

from ..frozen.attention_record import AttentionRecord
from ..kv.pass_caches import PassCache
from ..kv.store import LayerStates
from ..memory.memory import Memory
from ..memory.seen_chunks import SeenChunks
from ..passes.chunk_pass import candidate_places, select_candidates
from ..passes.chunking import with_bos
from ..passes.inputs import PassInput
from ..passes.one_pass import PASS_TOKENS, STREAM_TOKENS, read_in_one_pass
from ..passes.prompt_region import Placement, PromptRegion
from ..passes.reader import Reader
from ..passes.settings import Settings
from .local_states import LocalStates
from .loop_cache import LoopCache
from .stream import Stream


class Predictor(LoopCache):
    """Chunks, streams, their local keys and values, and how their next tokens are predicted from these.

    Attributes:
        chunk_attention (`list[torch.Tensor]`): What the newest tokens of each stream looked at: the mean share of
            attention, over tokens, heads and layers, of each of their candidates, (chunks,) each. Empty, if nothing
            asked for it.

    Args:
        reader, settings, documents, memory, document: As for `LoopCache`.
        progress (`bool`): Show a progress bar while chunks are read.
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
        self.chunks = SeenChunks(reader, settings, memory, document, progress)
        self.streams: list[Stream] = []
        self.regions: list[PromptRegion] = []  # one for each document
        self.local = LocalStates()
        if len(self.chunks):
            self.base_cache = None
        self._reads_in_parts = reader.reads_in_parts and self.chunks.ranks.size == 1 and not reader.sharded
        self.records_attention = False
        self.chunk_attention: list[torch.Tensor] = []

    @property
    def _members(self) -> int:
        """Streams of each document."""
        return len(self.streams) // self.documents

    def _limit(self, stream: Stream) -> int:
        return self.settings.window_limit(len(stream.rows))

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

    def _predict(self, newest: int) -> torch.Tensor:
        """By the chunk pass, and the local pass behind its candidates."""
        if not any(stream.rows for stream in self.streams):
            logits = self._local_pass(newest)
        elif self._fits_one_pass(newest):
            logits = self._one_pass(newest)
        else:
            logits = self._local_pass(newest, self._candidates(newest))
        for stream in self.streams:
            stream.cached = len(self._window(stream))
        return logits

    def _place_prompts(self, newest: int) -> dict[int, Placement]:
        """Place what is new of the prompts behind the chunks of each document."""
        if self.memory is not None and not self.memory.lease(self):
            for document in range(self.documents):
                self._clear_region(document)
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

    def _candidates(self, newest: int) -> list[LayerStates]:
        """Run the chunk pass, and gather each stream's candidates."""
        placements = self._place_prompts(newest)
        pool = self.chunks.candidates(placements, self._members * newest)
        self._keep_prompts(placements)
        if self.settings.exact:
            for stream in self.streams:
                if stream.rows:
                    prompt = len(self._prompt(stream))
                    stream.local_start = self.chunks.frames.local_start(len(stream.rows), prompt)
        return select_candidates(pool, *self._places(newest))

    def _places(self, newest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each stream's candidates stand among those of all chunk rows."""
        rows, members = [stream.rows for stream in self.streams], [stream.member for stream in self.streams]
        return candidate_places(rows, members, newest)

    def _local_pass(self, newest: int, candidates: list[LayerStates] | None = None) -> torch.Tensor:
        """Run the local pass behind the candidates, if there are any."""
        chunks = [len(stream.rows) for stream in self.streams]
        prefix = max(chunks) * newest
        inputs, cache = self._open_local(newest)
        cache.prefix = candidates
        record = AttentionRecord(prefix, newest) if prefix and self.records_attention else None
        logits = self.reader.run(inputs, cache, logits=newest, record=record)
        if record is not None:
            shares = record.mean.cpu().unflatten(1, (newest, -1)).sum(1)  # each token sees candidates of its own
            self.chunk_attention = [share[len(share) - count :] for share, count in zip(shares, chunks)]
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

        In exact mode the local window is read again as a whole; attention that is recorded and chunks of other
        processes need the chunk pass by itself.
        """
        if self.settings.exact or self.records_attention or not self._reads_in_parts:
            return False
        new = max(max(len(self._window(s)) - s.cached, len(self._prompt(s)) - s.fed) for s in self.streams)
        return new <= STREAM_TOKENS and len(self.chunks) * self._members * (new + newest) <= PASS_TOKENS

    def _one_pass(self, newest: int) -> torch.Tensor:
        placements = self._place_prompts(newest)
        logits = read_in_one_pass(
            self.reader,
            self.chunks.batches(placements),
            self._members * newest,
            self._open_local(newest),
            self._places(newest),
        )
        self._keep_prompts(placements)
        return logits[:, -newest:]
