"""`KeptChunks`: chunks that were read, kept for the next input that has the same ones."""

from __future__ import annotations

import random
import threading
from array import array
from collections.abc import Callable, Hashable, Sequence

from .files import copy_states
from .store import KeyValueStore, runs


GIB = 2**30
_lock = threading.Lock()  # threads may share what is kept


class KeptChunks:
    """Keys and values of chunks, for inputs that have the same tokens in a chunk at the same place.

    They come from the frozen model alone, so one adapter's chunks are another's. They stay where they were read, in
    the model's type.

    Args:
        gigabytes (`float`): Room for them, in GiB. Where it does not suffice, chunks make room in a random order: the
            oldest would be the first that the next input needs.

    Attributes:
        hits, misses (`int`): Chunks that were taken from here, and that were read.

    Raises:
        ValueError: if `gigabytes` is no number above 0.
    """

    def __init__(self, gigabytes: float) -> None:
        if isinstance(gigabytes, bool) or not isinstance(gigabytes, (int, float)) or not gigabytes > 0:
            raise ValueError(f"`gigabytes` must be a number above 0, got {gigabytes!r}.")
        self.hits = self.misses = 0
        self._room, self._held = int(gigabytes * GIB), 0
        self._chunks: dict[Hashable, KeyValueStore] = {}  # of one row each
        self._random = random.Random(0)

    def fill(
        self,
        computing: Hashable,
        store: KeyValueStore,
        first_row: int,
        placed: tuple[Sequence[Sequence[int]], Sequence[int]],
        read: Callable[[int, int], None],
    ) -> None:
        """Fill rows of a store: copy the chunks that are here, read the others, and keep them.

        Args:
            computing (`Hashable`): The frozen model and what it computes in. What was read otherwise is not taken.
            store (`KeyValueStore`), first_row (`int`): As for `Reader.read_chunks`.
            placed (`tuple`): Chunks and their starts, as for `Reader.read_chunks`.
            read (`Callable`): `read(begin, end)` reads the chunks from number `begin` to `end` - 1 into their rows.
        """
        chunks, starts = placed
        # what a store has rounded is not what another would hold
        place = computing, store.rounds
        keys = [(place, start, array("q", chunk).tobytes()) for start, chunk in zip(starts, chunks)]
        missing = []
        for number, key in enumerate(keys):
            chunk = self._chunks.get(key)
            if chunk is None:
                missing.append(number)
                continue
            copy_states(chunk, store, [(first_row + number, 0)], [len(chunks[number])])
        for begin, end in runs(missing):
            read(begin, end)
            for number in range(begin, end):
                self._keep(keys[number], store, first_row + number, len(chunks[number]))
        with _lock:
            self.hits += len(chunks) - len(missing)
            self.misses += len(missing)

    def _keep(self, key: Hashable, store: KeyValueStore, row: int, length: int) -> None:
        chunk = KeyValueStore(1, length)
        copy_states(store, chunk, [(0, row)], [length])
        size = chunk.nbytes
        with _lock:
            while self._chunks and self._held + size > self._room:
                self._held -= self._chunks.pop(self._random.choice(list(self._chunks))).nbytes
            if key not in self._chunks and size <= self._room:
                self._chunks[key] = chunk
                self._held += size
