"""Preallocated key/value storage: rows that are written in place and handed to attention as views, without copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache


# (keys, values) of one layer, each (rows, kv_heads, tokens, head_dim)
LayerStates = tuple[torch.Tensor, torch.Tensor]


class Slab:
    """Keys and values of all layers, (rows, kv_heads, columns, head_dim) each, with room to grow in rows and columns.

    Which columns mean something is the owner's business; what is stale is masked out and overwritten.
    """

    def __init__(self, rows: int = 0, columns: int = 0) -> None:
        self.rows = rows
        self.columns = columns
        self.layers: list[LayerStates] = []

    def layer(self, index: int, like: LayerStates) -> LayerStates:
        """The storage of a layer, made at first use with the heads, width, dtype and device of `like`."""
        while len(self.layers) <= index:
            self.layers.append(
                (
                    like[0].new_zeros(self.rows, like[0].shape[1], self.columns, like[0].shape[3]),
                    like[1].new_zeros(self.rows, like[1].shape[1], self.columns, like[1].shape[3]),
                )
            )
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
            keys, values = self.layers[index]
            self.layers[index] = (self._grown(keys, rows, columns, front), self._grown(values, rows, columns, front))
            del keys, values
        self.rows, self.columns = rows, columns

    def _grown(self, old: torch.Tensor, rows: int, columns: int, front: int) -> torch.Tensor:
        new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
        new[: self.rows, :, front : front + self.columns] = old
        return new

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep the given rows, in the given order (a row may be named more than once)."""
        self.rows = len(rows)
        for index, (keys, values) in enumerate(self.layers):
            at = rows.to(keys.device)
            self.layers[index] = (keys.index_select(0, at), values.index_select(0, at))

    def gather(self, rows: torch.Tensor, columns: torch.Tensor) -> list[LayerStates]:
        """States at (rows, columns), index tensors of one shape (a, b): per layer two tensors (a, kv_heads, b, head_dim)."""
        gathered = []
        for keys, values in self.layers:
            at = (rows.to(keys.device), slice(None), columns.to(keys.device))
            gathered.append((keys[at].transpose(1, 2), values[at].transpose(1, 2)))
        return gathered

    @property
    def nbytes(self) -> int:
        return sum(states.numel() * states.element_size() for layer in self.layers for states in layer)


class PassCache(Cache):
    """What one pass of the base model writes to and reads from, in the shape of a transformers cache.

    Args:
        slab (`Slab`): The storage.
        rows (`slice`): Rows of the slab that the pass is about.
        columns (`torch.LongTensor` of shape (rows, tokens)): Where each new token's key and value go.
        read (`slice`): Columns that attention sees.
        prefix (`Sequence[LayerStates]`, *optional*): States of shape (rows, kv_heads, m, head_dim) that stand in the m columns
            before `prefix_end`, written in each layer just before it is read.
        prefix_end (`int`): The column that follows the prefix.
        fresh (`bool`): True: attention sees the new tokens only (nothing came before).
    """

    def __init__(
        self,
        slab: Slab,
        rows: slice,
        columns: torch.Tensor,
        read: slice,
        prefix: Sequence[LayerStates] | None = None,
        prefix_end: int = 0,
        fresh: bool = False,
    ) -> None:
        super().__init__(layers=[])
        self.slab, self.row_slice, self.read = slab, rows, read
        self.prefix, self.prefix_end, self.fresh = prefix, prefix_end, fresh
        self.tokens = columns.shape[1]
        first = columns[:1]
        # the common case, every row at the same place, needs no scatter
        aligned = bool((columns == first).all()) and bool((first.diff() == 1).all())
        self.target: slice | None = slice(int(first[0, 0]), int(first[0, -1]) + 1) if aligned else None
        self.scatter = (torch.arange(rows.start, rows.stop)[:, None], columns)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> LayerStates:
        """Write the new states of a layer, and return views of all that its attention may see."""
        stores = self.slab.layer(layer_idx, (key_states, value_states))
        for store, new, side in zip(stores, (key_states, value_states), (0, 1)):
            if self.target is not None:
                store[self.row_slice, :, self.target] = new
            else:
                row_index, columns = (index.to(store.device) for index in self.scatter)
                store[row_index, :, columns] = new.transpose(1, 2)
            if self.prefix is not None:
                states = self.prefix[layer_idx][side]
                store[self.row_slice, :, self.prefix_end - states.shape[2] : self.prefix_end] = states
        if self.fresh:
            return key_states, value_states
        return stores[0][self.row_slice, :, self.read], stores[1][self.row_slice, :, self.read]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        return (self.tokens if self.fresh else self.read.stop - self.read.start), 0


class GraphCache(Cache):
    """A cache that keeps the graph: stored states and the new ones are concatenated, and the new ones are remembered.

    `update` has no side effect but the remembering, so that a layer may run twice (gradient checkpointing).

    Args:
        past (`Sequence[LayerStates]`): States of shape (rows, kv_heads, past tokens, head_dim) for each layer.
    """

    def __init__(self, past: Sequence[LayerStates]) -> None:
        super().__init__(layers=[])
        self.past = past
        self.new: dict[int, LayerStates] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> LayerStates:
        self.new.setdefault(layer_idx, (key_states, value_states))
        keys, values = self.past[layer_idx]
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past[0][0].shape[2]

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + int(query_length), 0


def round_up(size: int, multiple: int = 64) -> int:
    return math.ceil(size / multiple) * multiple
