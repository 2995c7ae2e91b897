"""Where keys and values of chunks are kept: on the model's device (`Slab`), in CPU memory, in 8 bits, or on disk.

A pass goes over a batch of chunk rows, layer by layer, so nothing but one layer of one batch has to be where the model computes.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .config import STORAGES
from .int8 import Int8Slab
from .slab import LayerStates, Place, Slab, round_up


# Bytes that are copied at once from one file to another
COPIED = 2**24
# Bytes of new states that may be on their way from a GPU before the CPU waits for the first of them
ON_THE_WAY = 2**28


def make_slab(storage: str, rows: int = 0, columns: int = 0, directory: str | os.PathLike | None = None) -> Slab:
    """A store of the given kind: "device", "cpu", "int8" or "disk".

    Args:
        storage (`str`): The kind.
        rows, columns (`int`): Its size; it grows.
        directory (`str`, *optional*): Where "disk" makes its files. Default: the system's directory for temporary files.

    Raises:
        ValueError: if there is no such kind, or nothing can be written in `directory`.
    """
    if storage == "disk":
        return DiskSlab(rows, columns, directory)
    kinds: dict[str, type[Slab]] = {"device": Slab, "cpu": HostSlab, "int8": Int8Slab}
    if storage not in kinds:
        raise ValueError(f"`storage` must be one of {', '.join(map(repr, STORAGES))}, got {storage!r}.")
    return kinds[storage](rows, columns)


@dataclass
class _Coming:
    """New states of some rows in one layer, on their way from a GPU: new tokens for a place, or (None) the rows' chunks."""

    index: int
    rows: slice
    place: Place | None
    states: LayerStates
    arrived: Any  # the CUDA event after the copy

    @property
    def nbytes(self) -> int:
        return sum(side.nbytes for side in self.states)


class HostSlab(Slab):
    """States in CPU memory. A model on the CPU reads them there; for another device, each piece is copied to it, the next one ahead."""

    storage = "cpu"

    def __init__(self, rows: int = 0, columns: int = 0) -> None:
        super().__init__(rows, columns)
        self._targets: list[torch.device] = []  # where each layer computes
        self._passes: list[slice] = []
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

    def plan(self, passes: Sequence[slice]) -> None:
        self._passes = list(passes)
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

    def to(self, device: torch.device | str) -> None:
        """Nothing moves: states are copied to the model's device as they are read."""

    def _fetch(self, index: int, rows: slice, place: Place | None, new: LayerStates) -> None:
        """Copy new states to the CPU while the model goes on; they are written when they are there, at the end of the pass."""
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
        """What is read after a layer of some rows: the next layer, or the first one of the next rows."""
        if index + 1 < len(self.layers):
            return index + 1, rows
        later = [following for following in self._passes if following.start >= rows.stop]
        return (0, later[0]) if later else None

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


class DiskSlab(HostSlab):
    """States in files without a name, one for each layer, mapped into memory. They vanish with the store, however the process ends.

    What a pass has read or written is unmapped from the process right after; the system writes it out, and reads ahead.

    Args:
        rows, columns (`int`): The size.
        directory (`str`, *optional*): Where the files are made. Default: the system's directory for temporary files.

    Raises:
        ValueError: if nothing can be written in `directory`.
    """

    storage = "disk"

    def __init__(self, rows: int = 0, columns: int = 0, directory: str | os.PathLike | None = None) -> None:
        super().__init__(rows, columns)
        self.directory = os.fspath(directory or tempfile.gettempdir())
        if not os.path.isdir(self.directory) or not os.access(self.directory, os.W_OK | os.X_OK):
            raise ValueError(
                f"`storage_dir` is {self.directory!r}, which is no directory that can be written to; make it, or choose another."
            )
        self._maps: dict[int, mmap.mmap] = {}  # by the address of a layer's keys
        self._used: list[tuple[int, slice]] = []

    def _allocate(self, like: LayerStates, rows: int, columns: int) -> LayerStates:
        """Zeros in a file: keys, then values from the next page on."""
        shapes = [(rows, side.shape[1], columns, side.shape[3]) for side in like]
        sizes = [math.prod(shape) * side.element_size() for shape, side in zip(shapes, like)]
        start = round_up(sizes[0], mmap.PAGESIZE)
        size = start + sizes[1]
        with tempfile.TemporaryFile(dir=self.directory) as file:
            self._reserve_space(file.fileno(), size)
            mapped = mmap.mmap(file.fileno(), size)
        keys, values = (
            torch.frombuffer(mapped, dtype=side.dtype, count=math.prod(shape), offset=offset).view(shape)
            for side, shape, offset in zip(like, shapes, (0, start))
        )
        self._maps[keys.data_ptr()] = mapped
        return keys, values

    def _reserve_space(self, file: int, size: int) -> None:
        """Take the space at once: where it runs out later, the system would kill the process."""
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size)
            os.ftruncate(file, size)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # not every file system can
                os.ftruncate(file, size)
                return
            raise OSError(
                f"`storage_dir` {self.directory!r} has no room for {size / 2**20:,.1f} MiB of keys and values of one more layer "
                f"({error.strerror}); choose another directory, or a `storage` in memory."
            ) from error

    def open(self, index: int, rows: slice, stop: int, like: LayerStates) -> LayerStates:
        self._use(index, rows)
        return super().open(index, rows, stop, like)

    def store_chunks(self, index: int, rows: slice, new: LayerStates, lengths: Sequence[int]) -> None:
        self._use(index, rows)
        super().store_chunks(index, rows, new, lengths)

    def read(self, index: int, rows: slice, columns: int) -> LayerStates:
        self._use(index, rows)
        return super().read(index, rows, columns)

    def close(self) -> None:
        super().close()
        for index, rows in self._used:
            self._advise("MADV_DONTNEED", self.layers[index], rows)
        self._used.clear()

    def _grown(self, index: int, rows: int, columns: int, front: int) -> LayerStates:
        grown = self._allocate(self.layers[index], rows, columns)
        step = max(1, COPIED // max(1, self.layers[index][0][:1].nbytes))
        for begin in range(0, self.rows, step):
            piece = slice(begin, min(begin + step, self.rows))
            for new, old in zip(grown, self.layers[index]):
                new[piece, :, front : front + self.columns] = old[piece]
            self._advise("MADV_DONTNEED", grown, piece)
            self._advise("MADV_DONTNEED", self.layers[index], piece)
        del self._maps[self.layers[index][0].data_ptr()]
        return grown

    def _look_ahead(self, index: int, rows: slice) -> None:
        following = self._next(index, rows)
        if following is not None:
            self._advise("MADV_WILLNEED", self.layers[following[0]], following[1])

    def _use(self, index: int, rows: slice) -> None:
        """A piece will be used now, and the one before it no longer."""
        if self._used:
            last, held = self._used[-1]
            self._advise("MADV_DONTNEED", self.layers[last], held)
        self._used.append((index, rows))

    def _advise(self, advice: str, layer: LayerStates, rows: slice) -> None:
        """Tell the system what becomes of some rows' pages. In a file, what is no longer needed is not lost."""
        mapped, base = self._maps[layer[0].data_ptr()], layer[0].data_ptr()
        if not hasattr(mmap, advice):  # Windows
            return
        for side in layer:
            piece = side[rows]
            start = piece.data_ptr() - base
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(getattr(mmap, advice), first, start + piece.nbytes - first)
