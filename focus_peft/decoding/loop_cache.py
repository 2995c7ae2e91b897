"""`LoopCache`: what transformers' generation loops, and `generate`, ask of a cache that reads for itself."""

from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from ..frozen.compat import CACHE
from ..memory.memory import Memory
from ..passes.reader import Reader
from ..passes.settings import Settings
from .stream import Stream


class LoopCache(Cache):
    """A cache that is handed tokens and gives logits back.

    Attributes:
        streams (`Sequence[Stream]`): One for each row, once something has been read.
        tokens (`int`): Columns of the batch that have been handed over.
        base_cache (`DynamicCache`, *optional*): As long as there are no chunks, the base model runs as it always does.
        base_mask (`torch.Tensor` of shape (rows, columns), *optional*): Where `base_cache` has tokens, and no padding.
        may_crop (`bool`): Tokens may be taken back.
        numbers (`list[int]`): Of the memory's documents that are asked about, one for each document.

    Args:
        reader (`Reader`): Runs the passes.
        settings (`Settings`): Window sizes and the way to decode.
        documents (`int`): Rows of the input before the loops expand them; the expansions of a row share its chunks.
        memory (`Memory`, *optional*): Chunks that stand before everything that is handed over.
        document (`int`, *optional*): Only this document of the memory is asked about.
    """

    streams: Sequence[Stream]

    def __init__(
        self, reader: Reader, settings: Settings, documents: int, memory: Memory | None, document: int | None
    ) -> None:
        super().__init__(layers=[])
        self.reader, self.settings, self.memory, self.documents = reader, settings, memory, documents
        self.numbers = list(range(documents)) if document is None else [document]
        self.streams = []
        self.base_cache: DynamicCache | None = DynamicCache(config=reader.model.config)
        self.base_mask: torch.Tensor | None = None
        self.tokens = 0
        self.may_crop = False
        self._snapshots: list[Any] = []  # states before what may yet be taken back
        self._adapters = reader.adapters

    def read(
        self,
        new: Sequence[Sequence[int]],
        newest: int,
        mask: torch.Tensor | None = None,
        base_call: Callable[[Cache, torch.Tensor], Any] | None = None,
    ) -> torch.Tensor | Any:
        """Take new tokens in, and predict what follows.

        Args:
            new (`Sequence[Sequence[int]]`): The new tokens of each row, at least `newest` of them.
            newest (`int`): For how many of the last tokens of each row logits are wanted. Each of these is the newest
                token in its turn; tokens before them are plain.
            mask (`torch.Tensor` of shape (rows, columns), *optional*): Where the tokens stand among their padding.
            base_call (`Callable[[Cache, torch.Tensor], Any]`, *optional*): With `mask`: runs the base model on the
                same inputs, with a cache of its own and the mask of all columns.

        Returns:
            Logits of shape (rows, `newest`, vocabulary), or what `base_call` returned, if it was given and there are
            no chunks yet.
        """
        self._check_adapters()
        self._snapshots.clear()
        if not self.streams:
            self._open(len(new))
        self._check_read(new, newest)
        columns = max(map(len, new)) if mask is None else mask.shape[1]
        stays = map(self._stays_base, self.streams, map(len, new))
        if self.base_cache is not None and base_call is not None and mask is not None and all(stays):
            self.tokens += columns
            self.base_mask = mask if self.base_mask is None else torch.cat([self.base_mask, mask], dim=1)
            for stream, ids in zip(self.streams, new):
                stream.ids += ids
                stream.fresh = False
            return base_call(self.base_cache, self.base_mask)
        for row, ids in enumerate(new):
            if len(ids) < newest:
                raise ValueError(
                    f"`logits_to_keep` is {newest}, but row {row} of `input_ids` has {len(ids)} new tokens; ask for "
                    "fewer, or read the rows one by one."
                )
        self.tokens += columns
        self.base_cache = None
        for stream, ids in zip(self.streams, new):
            stream.ids += ids[: len(ids) - newest]
        tails = [list(ids[len(ids) - newest :]) for ids in new]
        turns = [len(ids) > newest for ids in new]
        # what is kept may be written to outside of the caller's inference mode
        with self.memory_lock(), torch.inference_mode(False), torch.no_grad():
            return torch.cat(self._read_newest(tails, turns), dim=1)

    def _check_adapters(self) -> None:
        """Raise a ValueError unless the adapters that it was begun with are on."""
        if self.reader.adapters != self._adapters:
            raise ValueError(
                f"`{CACHE}` was begun with the adapters {_named(self._adapters)}, and now there are "
                f"{_named(self.reader.adapters)}; switch them back, or read the input again without `{CACHE}`."
            )

    # Of a cache there may be several: the model and what was read before are not copied with it

    def __deepcopy__(self, memo: dict[int, Any]) -> LoopCache:
        copied = type(self).__new__(type(self))
        shared = {id(one): one for one in (self.reader, self.settings, self.memory)}
        with torch.inference_mode(False), torch.no_grad():  # a copy may be written to outside of the caller's
            copied.__dict__.update(copy.deepcopy(vars(self), shared))
        return copied

    def __copy__(self) -> LoopCache:
        return copy.deepcopy(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"A `{CACHE}` of focus_peft belongs to its model and cannot be pickled or saved; keep the token ids and "
            "read them again, or save a long document as a memory: `model.encode(ids).save(directory)`."
        )

    # What transformers' caches can do, and this one would leave undone without a word

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            f"`{CACHE}` holds what a model with a focus adapter read, and another model cannot go on from it; give "
            f"the model that made it, or leave `{CACHE}` out."
        )

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise ValueError(_undone("batch_repeat_interleave"))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        raise ValueError(_undone("batch_select_indices"))

    def reset(self) -> None:
        raise ValueError(_undone("reset"))

    @abstractmethod
    def _open(self, rows: int) -> None:
        """Make the streams of so many rows."""

    def _check_read(self, new: Sequence[Sequence[int]], newest: int) -> None:
        """Raise a ValueError if new tokens cannot be read. Nothing has been taken in of them. Args as of `read`."""

    def _read_newest(self, tails: Sequence[list[int]], turns: Sequence[bool]) -> list[torch.Tensor]:
        """Logits (rows, tokens, vocabulary) of the newest tokens, some at a time; a token that brings a choice of
        chunks is read by itself.

        Args:
            tails (`Sequence[list[int]]`): The newest tokens of each row.
            turns (`Sequence[bool]`): Whether a row was handed more than these, and so has a new turn.
        """
        logits: list[torch.Tensor] = []
        done, newest = 0, len(tails[0])
        while done < newest:
            choosing = [
                stream.chooses(turn and not done, self.settings.sizes.local, self._limit(stream))
                for stream, turn in zip(self.streams, turns)
            ]
            count = 1 if any(choosing) else min(newest - done, self._newest_at_once())
            for stream, tail in zip(self.streams, tails):
                stream.ids += tail[done : done + count]
            if any(choosing):
                self._choose(choosing)
            logits.append(self._predict(count))
            done += count
        return logits

    @abstractmethod
    def _newest_at_once(self) -> int:
        """How many newest tokens one pass may take, if none of them brings a choice."""

    def _choose(self, choosing: Sequence[bool]) -> None:
        """Choose the chunks anew that some of the streams read in full, by what their newest token looks at most."""
        raise NotImplementedError("only streams that read chunks in full choose any")

    @abstractmethod
    def _predict(self, newest: int) -> torch.Tensor:
        """Logits (rows, `newest`, vocabulary) for the last tokens of every row, which its stream has already."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.tokens

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_linear(self) -> list[bool]:
        return [False]  # of no layers at all, the loops would find that all are linear, and hand over old tokens again

    def activate_past_recording(self) -> None:
        """The loop announces that it may take tokens back."""
        self.may_crop = True
        record_past(self.base_cache)

    def check_continued_by(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise a ValueError unless each row starts with what was read of it, and goes on."""
        if len(rows) != len(self.streams):
            raise ValueError(
                f"`input_ids` has {len(rows)} rows, but `{CACHE}` continues {len(self.streams)} sequences; give "
                "one row for each."
            )
        for number, (row, stream) in enumerate(zip(rows, self.streams)):
            read = len(stream.ids)
            if len(row) <= read or list(row[:read]) != stream.ids:
                raise ValueError(
                    f"Row {number} of `input_ids` does not go on from the {read} tokens that `{CACHE}` holds; give "
                    f"the whole conversation, new tokens at its end, or leave `{CACHE}` out."
                )
        new = {len(row) - len(stream.ids) for row, stream in zip(rows, self.streams)}
        if len(new) > 1:  # the loops hand over the same columns of all rows
            raise ValueError(
                f"The rows of `input_ids` go on by {sorted(new)} tokens from what `{CACHE}` holds; give all rows "
                f"equally many new tokens, ask them one by one, or leave `{CACHE}` out."
            )

    def memory_lock(self) -> contextlib.AbstractContextManager:
        """Several threads may ask one memory, in turn."""
        return contextlib.nullcontext() if self.memory is None else self.memory.lock

    def _before(self, document: int) -> list[int]:
        """What stands in the memory before a document."""
        return [] if self.memory is None else self.memory.documents[self.numbers[document]]

    def _take_back(self, max_length: int) -> int | None:
        """Begin `crop(max_length)`. Returns how many tokens the sequence will have, or None if it keeps all.

        Raises:
            ValueError: if it would take any from several sequences, or tokens that others have become a chunk behind.
        """
        remove = -max_length if max_length <= 0 else self.tokens - max_length
        if remove <= 0:
            return None
        if len(self.streams) > 1:
            raise ValueError(
                f"`crop` can take tokens back from one sequence only, but {len(self.streams)} are being decoded; use "
                "assisted decoding with a batch of one."
            )
        length = len(self.streams[0].ids) - remove
        self._check_stays(length)
        if self.base_cache is not None:
            self.base_cache.crop(-remove)
            self.base_mask = None if self.base_mask is None else self.base_mask[:, :-remove]
        self.tokens -= remove
        return length

    def _check_stays(self, length: int) -> None:
        """Raise a ValueError if the first `length` tokens were cut into window and chunks in another way than they are
        now, and nobody remembers how.
        """
        stream = self.streams[0]
        for before in reversed(self._snapshots):
            if len(before.stream.ids) < length:
                break
            stream = before.stream
        if stream.rows and length < stream.split_at:  # right there, the next token would cut it again
            raise ValueError(
                f"`crop` would take {len(self.streams[0].ids) - length} tokens back, to before the last "
                f"{stream.split_at} were cut into a chunk and a window, which cannot be undone; read the shorter "
                f"input again, without `{CACHE}`."
            )

    def _stays_base(self, stream: Stream, new: int) -> bool:
        limit = self.settings.sizes.local + 1 if stream.fresh else self._limit(stream)
        return stream.window_length + new < limit

    def _limit(self, stream: Stream) -> int:
        """The length of a local window at which its oldest tokens become a chunk."""
        return self.settings.sizes.local + self.settings.sizes.chunk


def _named(adapters: Any) -> str:
    (disabled, ours), others = adapters
    return f"{list(ours)}{' (disabled)' if disabled else ''}{f' beside {list(others)}' if others else ''}"


def _undone(name: str) -> str:
    return (
        f"`{name}` is not possible with a `{CACHE}` of focus_peft, whose rows share chunks; read the input again with "
        f"the rows that you want, without `{CACHE}`."
    )


def record_past(cache: Any) -> None:
    """Tell a cache of transformers that tokens may be taken back, if it wants to know."""
    if hasattr(cache, "activate_past_recording"):
        cache.activate_past_recording()
