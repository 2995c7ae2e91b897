"""`SeenChunks`: the chunks behind a `FocusCache`, of a memory and cut from what was handed over, and how candidates
are made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..kv.storage import make_store
from ..kv.store import KeyValueStore, LayerStates, columns_for
from ..passes.chunk_pass import ChunkBatch, chunk_batches, read_candidates
from ..passes.inputs import ChunkRow
from ..passes.prompt_region import Placement
from ..passes.reader import Reader
from ..passes.settings import Settings
from .memory import Memory
from .ranks import Ranks


class SeenChunks:
    """Chunk rows, numbered: those of the memory first, then those that were cut from what was handed over.

    Args:
        reader (`Reader`): Runs the passes.
        settings (`Settings`): Storage, batch size, and whether chunks are spread.
        memory (`Memory`, *optional*): Chunks that stand before everything that is handed over.
        document (`int`, *optional*): Only this document of the memory is seen; it is then the first.
        progress (`bool`): Show a progress bar while chunks are read.
    """

    def __init__(
        self,
        reader: Reader,
        settings: Settings,
        memory: Memory | None = None,
        document: int | None = None,
        progress: bool = False,
    ) -> None:
        self._reader, self._settings, self._memory, self._progress = reader, settings, memory, progress
        self.frames = settings.frames if memory is None else memory.frames
        self.ranks = Ranks.of(settings.config.spread_chunks, reader) if memory is None else memory.ranks
        rows = [] if memory is None else memory.rows
        self._first = 0  # the row of the memory's store that is our first
        if document is not None:  # a document's rows are neighbors
            before = next(n for n, row in enumerate(rows) if row.document == document)
            self._first = len(self.ranks.own(rows[:before]))
            rows = [replace(row, document=0) for row in rows if row.document == document]
        self.rows = list(rows)
        self._held = len(rows)  # of them in the memory
        self.store = make_store(settings.config.storage, directory=settings.config.storage_dir)

    def __len__(self) -> int:
        return len(self.rows)

    def of_document(self, document: int) -> list[int]:
        """The numbers of a document's rows."""
        return [number for number, row in enumerate(self.rows) if row.document == document]

    def add(self, chunks: Sequence[tuple[int, int, Sequence[int]]], newest: int) -> None:
        """Read chunks that were cut; they get the next numbers.

        Args:
            chunks (`Sequence[tuple[int, int, Sequence[int]]]`): Of each its document, its index there, and its tokens.
            newest (`int`): How many newest tokens the next chunk pass brings, for room.

        Raises:
            RuntimeError: in all processes that share the chunks, if they do not cut the same.
        """
        if not chunks:
            return
        self.ranks.check_alike("what is read is", list(chunks))
        new = [ChunkRow(document, index, len(ids)) for document, index, ids in chunks]
        self.ranks.share(new, self.rows)
        first = len(self.ranks.own(self.rows[self._held :]))
        self.rows += new
        own = self.ranks.own(new)
        if own:
            ids = [list(ids) for row, (_, _, ids) in zip(new, chunks) if self.ranks.holds(row)]
            columns = columns_for(max(row.length for row in own) + 1, self.frames.nominal + newest)
            self.store.reserve(self._capacity(first + len(own)), columns)
            starts = [self.frames.chunk_start(row.index, row.length) for row in own]
            self._reader.read_chunks(
                self.store, first, ids, starts, self._settings.config.chunk_batch_size, self._progress
            )

    def _capacity(self, rows: int) -> int:
        """Rows to reserve: exactly what is needed at first, and twice as many whenever that is not enough."""
        return rows if rows <= self.store.rows or not self.store.rows else max(rows, 2 * self.store.rows)

    def truncate(self, count: int) -> None:
        """Forget all rows but the first `count`."""
        del self.rows[count:]

    def candidates(self, placements: dict[int, Placement], count: int) -> Sequence[LayerStates]:
        """Run the chunk pass.

        Args:
            placements (`dict[int, Placement]`): What is new in each document.
            count (`int`): Candidates of each row.

        Returns:
            Per layer, keys and values of shape (rows, kv_heads, `count`, head_dim).
        """
        found = read_candidates(self._reader, self._batches(placements), count)
        return self.ranks.gather(found, self.rows, count, self._reader.device)

    def batches(self, placements: dict[int, Placement]) -> list[ChunkBatch]:
        """All rows, for a pass whose layers each read all of them."""
        return list(self._batches(placements, layer_by_layer=True))

    def _batches(self, placements: dict[int, Placement], layer_by_layer: bool = False) -> Iterator[ChunkBatch]:
        held, cut = self.rows[: self._held], self.rows[self._held :]
        stores: list[tuple[KeyValueStore, Sequence[ChunkRow], int]] = [(self.store, self.ranks.own(cut), 0)]
        if self._memory is not None:
            stores.insert(0, (self._memory.store, self.ranks.own(held), self._first))
        batch_size = self._settings.config.chunk_batch_size
        return chunk_batches(self._reader, stores, self.frames, placements, batch_size, layer_by_layer)
