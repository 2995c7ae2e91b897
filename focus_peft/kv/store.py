"""Preallocated key/value storage: rows that are written in place and handed to attention as views, without copies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of each run of consecutive numbers, in ascending ones."""
    begin = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            yield numbers[begin], numbers[place - 1] + 1
            begin = place


# (keys, values) of one layer, each (rows, kv_heads, tokens, head_dim)
LayerStates = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Place:
    """Where new tokens go in some rows.

    Attributes:
        columns (`torch.LongTensor` of shape (rows, tokens)): The column of each; padding goes to column `end`.
        end (`int`): The column that follows all others that mean something.
        span (`slice`, *optional*): The columns, if they are neighbours and the same in every row.
    """

    columns: torch.Tensor
    end: int
    span: slice | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        first = self.columns[:1]
        # the common case, every row at the same place, needs no scatter
        if bool((self.columns == first).all()) and bool((first.diff() == 1).all()):
            self.span = slice(int(first[0, 0]), int(first[0, -1]) + 1)
        self._indices: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}  # sent once, not in every layer

    def put(self, store: torch.Tensor, new: torch.Tensor) -> None:
        """Write `new` (rows, kv_heads, tokens, head_dim) into `store` (rows, kv_heads, columns, head_dim)."""
        if self.span is not None:
            store.narrow(2, self.span.start, self.span.stop - self.span.start).copy_(new)
        else:
            self.send(store.device)
            rows, columns = self._indices[store.device]
            store[rows, :, columns] = new.transpose(1, 2).to(store)

    def send(self, device: torch.device) -> None:
        """Have what `put` needs on a device, before the layers run there."""
        if self.span is None and device not in self._indices:
            rows = torch.arange(len(self.columns), device=device)[:, None]
            self._indices[device] = rows, sent(self.columns, device)


class KeyValueStore:
    """Keys and values of all layers, (rows, kv_heads, columns, head_dim) each, with room to grow in rows and columns.

    Which columns mean something is the owner's business; what is stale is masked out and overwritten. Here the states
    are where the model computes; the stores in `storage` keep them elsewhere.
    """

    storage = "device"
    rounds = False  # whether what is stored is not quite what was read

    def __init__(self, rows: int = 0, columns: int = 0) -> None:
        self.rows = rows
        self.columns = columns
        self.layers: list[LayerStates] = []

    def layer(self, index: int, like: LayerStates) -> LayerStates:
        """The storage of a layer, made at first use with the heads, width, dtype and device of `like`."""
        while len(self.layers) <= index:
            self.layers.append(self._allocate(like, self.rows, self.columns))
        keys, values = self.layers[index]
        if keys.device != like[0].device:  # loaded to one device, while the model is spread over several
            self.layers[index] = keys.to(like[0].device), values.to(like[1].device)
        return self.layers[index]

    def reserve(self, rows: int, columns: int, front: int = 0) -> None:
        """Make room for at least so many rows and columns, and for `front` more columns before the first.

        What is stored stays, `front` columns further right. One layer is copied at a time.
        """
        rows, columns = max(rows, self.rows), max(columns, self.columns + front)
        if (rows, columns) == (self.rows, self.columns):
            return
        for index in range(len(self.layers)):
            self.layers[index] = self._grown(index, rows, columns, front)
        self.rows, self.columns = rows, columns

    def _allocate(self, like: LayerStates, rows: int, columns: int) -> LayerStates:
        """Zeros of shape (rows, kv_heads, columns, head_dim)."""
        keys, values = (side.new_zeros(rows, side.shape[1], columns, side.shape[3]) for side in like)
        return keys, values

    def _grown(self, index: int, rows: int, columns: int, front: int) -> LayerStates:
        grown = self._allocate(self.layers[index], rows, columns)
        for new, old in zip(grown, self.layers[index]):
            # wider than `columns`, where there was no room for all layers the last time
            new[: self.rows, :, front : front + self.columns] = old[: self.rows, :, : self.columns]
        return grown

    def part(self, first: int, rows: int) -> KeyValueStore:
        """Some neighboring rows, as a store of their own that shares their states."""
        part = KeyValueStore(rows, self.columns)
        part.layers = [(keys[first : first + rows], values[first : first + rows]) for keys, values in self.layers]
        return part

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep the given rows, in the given order (a row may be named more than once)."""
        self.rows = len(rows)
        for index, (keys, values) in enumerate(self.layers):
            at = rows.to(keys.device)
            self.layers[index] = (keys.index_select(0, at), values.index_select(0, at))

    # What a pass over some rows does with each layer in turn, while no graph is being made

    def plan(self, passes: Sequence[slice], layer_by_layer: bool = False) -> None:
        """Passes over these rows follow, in this order; or one pass, in which each layer reads all of them."""

    def open(self, index: int, rows: slice, stop: int, like: LayerStates) -> LayerStates:
        """States of the rows in one layer, where `like` is, of at least `stop + 1` columns: to be written to and
        read.
        """
        keys, values = self.layer(index, like)
        if rows.start == 0 and rows.stop == self.rows:
            return keys, values
        return keys[rows], values[rows]

    def keep(self, index: int, rows: slice, place: Place, new: LayerStates) -> None:
        """Store new tokens that are no chunk's own, after they have been written to what `open` gave."""

    def store_chunks(self, index: int, rows: slice, new: LayerStates, lengths: Sequence[int]) -> None:
        """Store what was read of chunks of so many tokens, padded on the right, in the rows' first columns."""
        for store, states in zip(self.layer(index, new), new):
            store[rows, :, : states.shape[2]] = states

    def read(self, index: int, rows: slice, columns: int) -> LayerStates:
        """The first columns of some rows, for a copy."""
        keys, values = self.layers[index]
        return keys[rows, :, :columns], values[rows, :, :columns]

    def close(self) -> None:
        """A pass is over; what it held may go."""

    def to(self, device: torch.device | str) -> None:
        """Move all states to a device."""
        self.layers = [(keys.to(device), values.to(device)) for keys, values in self.layers]

    @property
    def device(self) -> torch.device | None:
        """Where the first layer is. None: nothing is stored."""
        return self.layers[0][0].device if self.layers else None

    @property
    def nbytes(self) -> int:
        return sum(states.numel() * states.element_size() for layer in self.layers for states in layer)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device. A GPU fetches it from pinned memory in its own time, and nobody waits for
    it.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def round_up(size: int, multiple: int = 64) -> int:
    return math.ceil(size / multiple) * multiple


def columns_for(tokens: int, prompt: int) -> int:
    """Columns for rows of so many tokens, with a prompt that may grow by half before storage is copied into a larger
    one.
    """
    return round_up(tokens + prompt + prompt // 2)
