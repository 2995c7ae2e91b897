"""Where keys and values of chunks are kept: on the model's device (`KeyValueStore`), in CPU memory, in 8 bits, or on
disk.

A pass goes over a batch of chunk rows, layer by layer, so nothing but one layer of one batch has to be where the model
computes.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from .host import HostStore
from .store import LayerStates, round_up


# Bytes that are copied at once from one file to another
COPIED = 2**24


class DiskStore(HostStore):
    """States in files without a name, one for each layer, mapped into memory. They vanish with the store, however the
    process ends.

    What a pass has read or written is unmapped from the process right after; the system writes it out, and reads
    ahead.

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
                f"`storage_dir` is {self.directory!r}, which is no directory that can be written to; make it, or "
                "choose another."
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
                f"`storage_dir` {self.directory!r} has no room for {size / 2**20:,.1f} MiB of keys and values of one "
                f"more layer ({error.strerror}); choose another directory, or a `storage` in memory."
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
        grown = self._copied_to(self, index, rows, columns, front)
        del self._maps[self.layers[index][0].data_ptr()]
        return grown

    def _copied_to(self, other: DiskStore, index: int, rows: int, columns: int, front: int = 0) -> LayerStates:
        """A layer in a new file of `other`, of so many rows and columns."""
        grown = other._allocate(self.layers[index], rows, columns)
        step = max(1, COPIED // max(1, self.layers[index][0][:1].nbytes))
        for begin in range(0, self.rows, step):
            piece = slice(begin, min(begin + step, self.rows))
            for new, old in zip(grown, self.layers[index]):
                new[piece, :, front : front + self.columns] = old[piece, :, : self.columns]
            other._advise("MADV_DONTNEED", grown, piece)
            self._advise("MADV_DONTNEED", self.layers[index], piece)
        return grown

    def __deepcopy__(self, memo: dict[int, Any]) -> DiskStore:
        """A store with files of its own."""
        copied = DiskStore(self.rows, self.columns, self.directory)
        copied._targets = list(self._targets)
        copied.layers = [self._copied_to(copied, index, self.rows, self.columns) for index in range(len(self.layers))]
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            'What `storage="disk"` keeps is in files that belong to this process, and cannot be pickled; save it with '
            "`memory.save(directory)`, and load it where it is needed with `model.load_memory(directory)`."
        )

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
