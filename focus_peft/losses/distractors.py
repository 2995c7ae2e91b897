"""Distractors: chunks of other documents that stand among a document's own in training, so that candidates learn to be
silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..kv.files import copy_states
from ..kv.store import KeyValueStore
from ..passes.ids import real_row
from ..passes.reader import Reader
from ..passes.settings import Settings


class Distractors:
    """
    Chunks that are read once and then stand among the chunks of other documents.

    An input in use has hundreds of chunks, of which few matter; a training document has a handful, which all do. Twins
    that have seen no others let every candidate speak, and the many drown the one that knows. Keys and values of a
    chunk do not depend on the twins, so in a training step a distractor costs its dynamic prompt and its candidates,
    not its tokens. The paper knows nothing like it.

    Args:
        reader (`Reader`): Reads them, once.
        settings (`Settings`): Each has as many tokens as its largest chunk.
        chunks (`Sequence[Sequence[int]]`): Their ids. Chunk i stands at place i.
    """

    def __init__(self, reader: Reader, settings: Settings, chunks: Sequence[Sequence[int]]) -> None:
        self.tokens = settings.sizes.chunk
        self._store = KeyValueStore(len(chunks), self.tokens)
        starts = [settings.frames.chunk_start(place, self.tokens) for place in range(len(chunks))]
        reader.read_chunks(self._store, 0, chunks, starts, settings.config.chunk_batch_size)

    @classmethod
    def of(cls, reader: Reader, settings: Settings, documents: Any, count: int) -> Distractors:
        """The beginnings of some documents, evenly spaced among those that are long enough.

        Args:
            documents (`Sequence[Mapping]`): Documents with `input_ids`.
            count (`int`): How many distractors.

        Raises:
            ValueError: if there are not so many documents of a chunk.
        """
        size = settings.sizes.chunk
        if not hasattr(documents, "__len__") or not hasattr(documents, "__getitem__"):
            raise ValueError(
                f"`distractors` is {count}, but `train_dataset` ({type(documents).__name__}) has no length, so they "
                "cannot be picked from it; give a dataset with one, or leave `distractors` out."
            )
        step = max(1, len(documents) // count)
        order = (index for first in range(step) for index in range(first, len(documents), step))
        chunks: list[list[int]] = []
        for index in order:
            ids = real_row(documents[index])
            if len(ids) >= size:
                chunks.append([int(token) for token in ids[:size]])
            if len(chunks) == count:
                return cls(reader, settings, chunks)
        raise ValueError(
            f"`distractors` is {count}, but only {len(chunks)} documents of `train_dataset` have the {size} tokens of "
            "a chunk; choose fewer, smaller chunks, or longer documents."
        )

    def __len__(self) -> int:
        return self._store.rows

    def copy(self, store: KeyValueStore, first_row: int, places: Sequence[int]) -> None:
        """Copy the distractors of some places into consecutive rows of a store that holds other chunks already."""
        if not places:  # such a store may be narrower than a distractor
            return
        copy_states(self._store, store, list(enumerate(places, first_row)), [self.tokens] * len(places))
