"""The caches of one pass: they put the keys and values that the model makes where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from ..frozen.parts import Parts
from .store import KeyValueStore, LayerStates, Place, sent


class PassCache(Cache):
    """What one pass of the base model writes to and reads from, in the shape of a transformers cache.

    Args:
        store (`KeyValueStore`): The storage.
        rows (`slice`): Rows of the store that the pass is about.
        columns (`torch.LongTensor` of shape (rows, tokens)): Where each new token's key and value go.
        read (`slice`): Columns that attention sees.
        prefix_end (`int`): The column that follows the prefix.
        chunks (`Sequence[int]`, *optional*): The rows' chunks are being read, which have so many tokens: attention
            sees the new tokens only (nothing came before).
        candidates (`int`): How many of the last tokens of each row to remember in `new`.

    Attributes:
        prefix (`Sequence[LayerStates]` or `dict[int, LayerStates]`, *optional*): The candidates: of each layer, states
            of shape (rows, kv_heads, m, head_dim) that stand in the m columns before `prefix_end`, written just before
            they are read.
        new (`dict[int, LayerStates]`): For each layer, keys and values (rows, kv_heads, `candidates`, head_dim).
    """

    def __init__(
        self,
        store: KeyValueStore,
        rows: slice,
        columns: torch.Tensor,
        read: slice,
        prefix_end: int = 0,
        chunks: Sequence[int] | None = None,
        candidates: int = 0,
    ) -> None:
        super().__init__(layers=[])
        self.store, self.row_slice, self.read = store, rows, read
        self.prefix: Sequence[LayerStates] | dict[int, LayerStates] | None = None
        self.prefix_end, self.chunks = prefix_end, chunks
        self.candidates = candidates
        self.tokens = columns.shape[1]
        self.place = Place(columns.clamp(max=read.stop), read.stop)
        self.new: dict[int, LayerStates] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> LayerStates:
        """Write the new states of a layer, and return views of all that its attention may see."""
        new = key_states, value_states
        if self.chunks is not None:
            self.store.store_chunks(layer_idx, self.row_slice, new, self.chunks)
            return new
        keys, values = self.store.open(layer_idx, self.row_slice, self.read.stop, new)
        for store, states, side in zip((keys, values), new, (0, 1)):
            self.place.put(store, states)
            if self.prefix is not None:
                before = self.prefix[layer_idx][side]
                width = before.shape[2]
                store.narrow(2, self.prefix_end - width, width).copy_(before)
        self.store.keep(layer_idx, self.row_slice, self.place, new)
        if self.candidates:
            last = slice(-self.candidates, None)
            self.new[layer_idx] = (
                key_states[:, :, last].to(keys.dtype, copy=True),
                value_states[:, :, last].to(values.dtype, copy=True),
            )
        begin, length = self.read.start, self.read.stop - self.read.start
        seen = keys.narrow(2, begin, length), values.narrow(2, begin, length)
        # what was stored under autocast, or without it, may be of another type
        return seen[0].to(key_states.dtype), seen[1].to(value_states.dtype)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        return (self.tokens if self.chunks is not None else self.read.stop - self.read.start), 0


class PartsCache(Cache):
    """The cache of a pass in parts: local windows see the candidates that chunk rows leave in the same layer.

    Args:
        parts (`Parts`): Where the tokens of each part stand in the pass.
        local (`PassCache`): Of the local windows, which are the first part. Its `prefix` is filled in here.
        chunks (`Sequence[PassCache]`): Of the other parts.
        candidates (`torch.LongTensor` of shape (streams, m)): Where among the tokens of the pass the candidates stand
            that each stream sees.
    """

    def __init__(self, parts: Parts, local: PassCache, chunks: Sequence[PassCache], candidates: torch.Tensor) -> None:
        super().__init__(layers=[])
        self.parts, self.local, self.chunks = parts, local, chunks
        self.streams = len(candidates)
        self._candidates = candidates.flatten()
        self._there: dict[torch.device, torch.Tensor] = {}  # sent to each device once, not in every layer

    def send(self, device: torch.device) -> None:
        """Have on a device what the layers need there, before they run."""
        for cache in (self.local, *self.chunks):
            cache.place.send(device)
        self._there[device] = sent(self._candidates, device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> LayerStates:
        """The new states as they are. Attention takes what each part sees from `parts.states`, one part at a time, and
        there they are written, candidates to the local windows too: no more than one piece of a store has to be there.
        """
        self.local.prefix = {layer_idx: (self._chosen(key_states), self._chosen(value_states))}
        self.parts.states = (
            cache.update(part.take(key_states), part.take(value_states), layer_idx)
            for part, cache in zip(self.parts.parts, (self.local, *self.chunks))
        )
        return key_states, value_states

    def _chosen(self, states: torch.Tensor) -> torch.Tensor:
        """(streams, heads, m, dim) of (1, heads, all tokens, dim)."""
        if states.device not in self._there:
            self._there[states.device] = sent(self._candidates, states.device)
        chosen = states.index_select(2, self._there[states.device])
        return chosen if self.streams == 1 else chosen[0].unflatten(1, (self.streams, -1)).transpose(0, 1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        return int(query_length), 0


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
