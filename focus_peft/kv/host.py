"""Keys and values in CPU memory, copied to the model's device while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .store import KeyValueStore, LayerStates, Place


# Bytes of new states that may be on their way from a GPU before the CPU waits for the first of them
ON_THE_WAY = 2**28


@dataclass
class _Coming:
    """New states of some rows in one layer, on their way from a GPU: new tokens for a place, or (None) the rows'
    chunks.
    """

    index: int
    rows: slice
    place: Place | None
    states: LayerStates
    arrived: Any  # the CUDA event after the copy

    @property
    def nbytes(self) -> int:
        return sum(side.nbytes for side in self.states)


class HostStore(KeyValueStore):
    """States in CPU memory. A model on the CPU reads them there; for another device, each piece is copied to it, the
    next one ahead.
    """

    storage = "cpu"

    def __init__(self, rows: int = 0, columns: int = 0) -> None:
        super().__init__(rows, columns)
        self._targets: list[torch.device] = []  # where each layer computes
        self._passes: list[slice] = []
        self._layer_by_layer = False
        self._ahead: dict[tuple[int, int], LayerStates] = {}  # pieces on their way, by layer and first row
        self._streams: dict[torch.device, Any] = {}  # of CUDA, where pieces are copied aside
        self._coming: deque[_Coming] = deque()  # new states on their way from the device

    def layer(self, index: int, like: LayerStates) -> LayerStates:
        """The storage of a layer, which stays in CPU memory."""
        while len(self.layers) <= index:
            self.layers.append(self._allocate(like, self.rows, self.columns))
            self._targets.append(like[0].device)
        self._targets[index] = like[0].device
        return self.layers[index]

    def _allocate(self, like: LayerStates, rows: int, columns: int) -> LayerStates:
        pinned = like[0].is_cuda or like[0].is_pinned()
        keys, values = (
            torch.zeros(rows, side.shape[1], columns, side.shape[3], dtype=side.dtype, pin_memory=pinned)
            for side in like
        )
        return keys, values

    def plan(self, passes: Sequence[slice], layer_by_layer: bool = False) -> None:
        self._passes, self._layer_by_layer = list(passes), layer_by_layer
        self._ahead.clear()
        self._coming.clear()  # of a pass that failed

    def open(self, index: int, rows: slice, stop: int, like: LayerStates) -> LayerStates:
        keys, values = self.layer(index, like)
        states = (keys[rows], values[rows]) if self._is_here(like[0].device) else self._arrived(index, rows)
        self._look_ahead(index, rows)
        return states

    def keep(self, index: int, rows: slice, place: Place, new: LayerStates) -> None:
        if not self._is_here(new[0].device):
            self._fetch(index, rows, place, new)

    def store_chunks(self, index: int, rows: slice, new: LayerStates, lengths: Sequence[int]) -> None:
        if self._is_here(new[0].device):
            super().store_chunks(index, rows, new, lengths)
        else:
            self.layer(index, new)
            self._fetch(index, rows, None, new)

    def close(self) -> None:
        self._write(0)

    def __getstate__(self) -> dict[str, Any]:
        """For a copy: what is on its way for a pass stays behind."""
        return {**vars(self), "_ahead": {}, "_streams": {}, "_coming": deque()}

    def to(self, device: torch.device | str) -> None:
        """Nothing moves: states are copied to the model's device as they are read."""

    def _fetch(self, index: int, rows: slice, place: Place | None, new: LayerStates) -> None:
        """Copy new states to the CPU while the model goes on; they are written when they are there, at the end of the
        pass.
        """
        device = new[0].device
        aside, arrived = self._aside(device), None
        if aside is not None:
            aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            keys, values = (side.to("cpu", non_blocking=True) for side in new)
        if aside is not None:
            for side in new:
                side.record_stream(aside)
            arrived = aside.record_event()
        self._coming.append(_Coming(index, rows, place, (keys, values), arrived))
        self._write(ON_THE_WAY)

    def _write(self, most: int) -> None:
        """Write what came from the device, until at most so many bytes are on their way."""
        while self._coming and sum(coming.nbytes for coming in self._coming) > most:
            coming = self._coming.popleft()
            if coming.arrived is not None:
                coming.arrived.synchronize()
            for store, states in zip(self.layers[coming.index], coming.states):
                if coming.place is None:
                    store[coming.rows, :, : states.shape[2]] = states
                else:
                    coming.place.put(store[coming.rows], states)

    def _is_here(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def _arrived(self, index: int, rows: slice) -> LayerStates:
        states = self._ahead.pop((index, rows.start), None)
        if states is None:
            return self._copied(index, rows)
        device = self._targets[index]
        if device in self._streams:
            current = torch.cuda.current_stream(device)
            current.wait_stream(self._streams[device])
            for side in states:
                side.record_stream(current)
        return states

    def _copied(self, index: int, rows: slice) -> LayerStates:
        keys, values = (
            side[rows].to(self._targets[index], non_blocking=True, copy=True) for side in self.layers[index]
        )
        return keys, values

    def _next(self, index: int, rows: slice) -> tuple[int, slice] | None:
        """What is read after a layer of some rows: the next layer, or the first one of the next rows. Layer by layer:
        the next rows, or the first ones in the next layer.
        """
        later = next((following for following in self._passes if following.start >= rows.stop), None)
        deeper = index + 1 < len(self.layers)
        if self._layer_by_layer:
            if later is not None:
                return index, later
            return (index + 1, self._passes[0]) if deeper and self._passes else None
        if deeper:
            return index + 1, rows
        return None if later is None else (0, later)

    def _look_ahead(self, index: int, rows: slice) -> None:
        """Copy the next piece while the model computes: new tokens of one piece are never in another."""
        following = self._next(index, rows)
        if following is None:
            return
        index, rows = following
        device = self._targets[index]
        if self._is_here(device):
            return
        with torch.cuda.stream(self._aside(device)):
            self._ahead[index, rows.start] = self._copied(index, rows)

    def _aside(self, device: torch.device) -> Any:
        """The stream of a GPU in which copies are made beside computation. None: there is none, copies wait."""
        if device.type == "cuda" and device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams.get(device)
