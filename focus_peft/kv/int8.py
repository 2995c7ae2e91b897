"""Keys and values of chunks in 8 bits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from .store import KeyValueStore, LayerStates, Place, round_up


# Of type int8 (rows, kv_heads, tokens, head_dim), and their scales of type float32 (rows, kv_heads, tokens, 1)
Codes = tuple[torch.Tensor, torch.Tensor]


class Int8Store(KeyValueStore):
    """A chunk's own tokens in 8 bits, with a scale for each token and head; prompts behind them in the model's type.

    `layers` holds the prompts: column 0 is the one behind the row's chunk.
    """

    storage = "int8"
    rounds = True

    def __init__(self, rows: int = 0, columns: int = 0) -> None:
        super().__init__(rows, columns)
        self.codes: list[tuple[Codes, Codes]] = []
        self.lengths = [0] * rows  # of the rows' chunks
        self._runs: dict[tuple[int, int], list[tuple[slice, int]]] = {}  # of rows whose chunks have one length
        self._behind: tuple[Place, Place] | None = (
            None  # of the pass that is running: its place, and the one in `layers`
        )

    def layer(self, index: int, like: LayerStates) -> LayerStates:
        while len(self.layers) <= index:
            self.layers.append(self._allocate(like, self.rows, 0))
            keys, values = (_empty_codes(side, self.rows) for side in like)
            self.codes.append((keys, values))
        if self.layers[index][0].device != like[0].device:
            self._move(index, like[0].device)
        return self.layers[index]

    def reserve(self, rows: int, columns: int, front: int = 0) -> None:
        """Make room for rows; columns come when something is written there."""
        if rows > self.rows:
            self.layers = [(_grow(k, rows, 0), _grow(v, rows, 0)) for k, v in self.layers]
            self.codes = [_grow_codes(sides, rows, 0) for sides in self.codes]
            self.lengths += [0] * (rows - self.rows)
        self.rows, self.columns = max(rows, self.rows), max(columns, self.columns)

    def store_chunks(self, index: int, rows: slice, new: LayerStates, lengths: Sequence[int]) -> None:
        self.layer(index, new)
        tokens = new[0].shape[2]
        self.codes[index] = _grow_codes(self.codes[index], 0, tokens)
        for (codes, scales), states in zip(self.codes[index], new):
            codes[rows, :, :tokens], scales[rows, :, :tokens] = quantize(states)
        self.lengths[rows] = lengths
        self._runs.clear()

    def open(self, index: int, rows: slice, stop: int, like: LayerStates) -> LayerStates:
        tails = self.layer(index, like)
        opened = []
        for (codes, scales), tail in zip(self.codes[index], tails):
            states = _dequantized(codes[rows], scales[rows], stop + 1, tail.dtype)
            for run, length in self._runs_of(rows):
                behind = min(tail.shape[2], stop + 1 - length)
                states[run, :, length : length + behind] = tail[rows][run, :, :behind]
            opened.append(states)
        return opened[0], opened[1]

    def keep(self, index: int, rows: slice, place: Place, new: LayerStates) -> None:
        if self._behind is None or self._behind[0] is not place:
            columns = place.columns - torch.tensor(self.lengths[rows])[:, None]
            real = place.columns < place.end
            end = int(columns[real].max()) + 1  # where padding goes
            self._behind = place, Place(columns.where(real, end), end)
        behind = self._behind[1]
        width = round_up(behind.end + 1)
        tails = self.layers[index] = _grow(self.layers[index][0], 0, width), _grow(self.layers[index][1], 0, width)
        for tail, states in zip(tails, new):
            behind.put(tail[rows], states)

    def close(self) -> None:
        self._behind = None

    def _runs_of(self, rows: slice) -> list[tuple[slice, int]]:
        """(rows, counted from the first of `rows`; the length of their chunks) for each run of chunks of one
        length.
        """
        if (rows.start, rows.stop) not in self._runs:
            found, begin = [], 0
            for length, members in itertools.groupby(self.lengths[rows]):
                end = begin + len(list(members))
                found.append((slice(begin, end), length))
                begin = end
            self._runs[rows.start, rows.stop] = found
        return self._runs[rows.start, rows.stop]

    def read(self, index: int, rows: slice, columns: int) -> LayerStates:
        """The first columns of some rows, back in the model's type."""
        keys, values = (
            _dequantized(codes[rows], scales[rows], columns, tail.dtype)
            for (codes, scales), tail in zip(self.codes[index], self.layers[index])
        )
        return keys, values

    def to(self, device: torch.device | str) -> None:
        for index in range(len(self.layers)):
            self._move(index, device)

    def _move(self, index: int, device: torch.device | str) -> None:
        keys, values = self.layers[index]
        self.layers[index] = keys.to(device), values.to(device)
        (k, k_scales), (v, v_scales) = self.codes[index]
        self.codes[index] = (k.to(device), k_scales.to(device)), (v.to(device), v_scales.to(device))

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(part.nbytes for sides in self.codes for codes in sides for part in codes)


def quantize(states: torch.Tensor) -> Codes:
    """Codes from -127 to 127 and scales of `states` (..., head_dim), symmetric: a state is about its code times its
    scale.

    The scale has 16 significant bits, rounded up. So a code times its scale is exact in float32, and what has been
    dequantized is quantized to the same codes and scales again.
    """
    wide = states if states.dtype == torch.float64 else states.float()
    fraction, exponent = torch.frexp(wide.abs().amax(-1, keepdim=True).div(127).clamp_min(2.0**-100))
    scales = torch.ldexp((fraction * 2**16).ceil(), exponent - 16)
    return (wide / scales).round_().clamp_(-127, 127).to(torch.int8), scales


def _dequantized(codes: torch.Tensor, scales: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """States of so many columns; 0 where there are no codes."""
    stored = min(columns, codes.shape[2])
    states = codes.new_empty((*codes.shape[:2], columns, codes.shape[3]), dtype=dtype)
    torch.mul(codes[:, :, :stored], scales[:, :, :stored], out=states[:, :, :stored])
    states[:, :, stored:] = 0
    return states


def _empty_codes(like: torch.Tensor, rows: int) -> Codes:
    codes = like.new_zeros(rows, like.shape[1], 0, like.shape[3], dtype=torch.int8)
    return codes, like.new_zeros(rows, like.shape[1], 0, 1, dtype=torch.float32)


def _grow(old: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """`old` (rows, kv_heads, columns, dim) with at least so many rows and columns."""
    if rows <= old.shape[0] and columns <= old.shape[2]:
        return old
    new = old.new_zeros(max(rows, old.shape[0]), old.shape[1], max(columns, old.shape[2]), old.shape[3])
    new[: old.shape[0], :, : old.shape[2]] = old
    return new


def _grow_codes(sides: tuple[Codes, Codes], rows: int, columns: int) -> tuple[Codes, Codes]:
    keys, values = ((_grow(codes, rows, columns), _grow(scales, rows, columns)) for codes, scales in sides)
    return keys, values
