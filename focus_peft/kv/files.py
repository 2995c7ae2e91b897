"""Keys and values of a memory in a safetensors file, written and read in pieces: never all of them are in memory at
once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import safe_open

from .store import KeyValueStore


# Names of types in safetensors files
TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
# Bytes that are in memory at once
PIECE = 2**26


class Digests:
    """A digest of each row, over its length and the states of all its layers, in whatever order these come."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._parts = [{"": length.to_bytes(8, "little")} for length in lengths]

    def add(self, name: str, first: int, states: torch.Tensor) -> None:
        """Take in the tensor `name`, (rows, ...) on the CPU, of the rows from `first` on."""
        for number, row in enumerate(states.contiguous().view(torch.uint8).numpy(), first):
            self._parts[number][name] = hashlib.sha256(row.data).digest()

    def rows(self) -> list[str]:
        """The digest of each row."""
        joined = (b"".join(parts[name] for name in sorted(parts)) for parts in self._parts)
        return [hashlib.sha256(parts).hexdigest()[:32] for parts in joined]


def describe_states(store: KeyValueStore, columns: int) -> dict[str, list]:
    """Type and shape of every tensor that `write_states` writes, in the order in which it does, as JSON gives them
    back.
    """
    described = {}
    for layer in range(len(store.layers)):
        for name, side in zip(("key", "value"), store.read(layer, slice(0, 1), 1)):
            described[f"{name}.{layer}"] = [str(side.dtype), [store.rows, side.shape[1], columns, side.shape[3]]]
    store.close()
    return dict(sorted(described.items()))


def write_states(path: str | os.PathLike, store: KeyValueStore, lengths: Sequence[int]) -> list[str]:
    """Write the first columns of all rows, in the model's type, 0 behind a row's length.

    Returns:
        A digest of each row.

    Raises:
        OSError: if the file cannot be written.
    """
    columns = max(lengths, default=0)
    kept = (torch.arange(columns)[None] < torch.tensor(lengths)[:, None])[:, None, :, None]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    described = describe_states(store, columns)
    for name, (dtype, shape) in described.items():
        kind = next(kind for kind in TYPES if str(kind) == dtype)
        begin, end = end, end + torch.Size(shape).numel() * kind.itemsize
        header[name] = {"dtype": TYPES[kind], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digests = Digests(lengths)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (_, shape) in described.items():
            side, layer = name.split(".")
            for rows in _pieces(shape):
                states = store.read(int(layer), rows, columns)[side == "value"]
                states = states.where(kept[rows].to(states.device), states.new_zeros(())).cpu().contiguous()
                store.close()
                digests.add(name, rows.start, states)
                file.write(states.view(torch.uint8).numpy().data)
    return digests.rows()


def read_states(
    path: str | os.PathLike,
    store: KeyValueStore,
    lengths: Sequence[int],
    described: tuple[dict[str, list], Sequence[str]],
    device: torch.device | str,
    first: int = 0,
) -> None:
    """Fill an empty store with what `write_states` wrote, on a device: as many rows as it has, from row `first` of the
    file on.

    Args:
        path, store, lengths: As for `write_states`; the lengths of all rows in the file.
        described (`tuple`): What `describe_states` and `write_states` returned.
        device: Where the states go.
        first (`int`): The first row.

    Raises:
        ValueError: if the file does not hold what is described.
        SafetensorError: if the file is damaged.
    """
    shapes, written = described
    kinds = {name: str(kind) for kind, name in TYPES.items()}
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        found = {name: [kinds.get(s.get_dtype()), list(s.get_shape())] for name, s in slices.items()}
    if found != shapes:
        raise ValueError(f"{os.path.basename(path)} does not hold what its description says")
    digests = Digests(lengths[first : first + store.rows])
    for layer in range(len(shapes) // 2):
        for rows in _pieces([store.rows, *shapes[f"key.{layer}"][1][1:]]):
            there = slice(first + rows.start, first + rows.stop)
            with safe_open(path, "pt") as file:  # mapped anew for each piece, which else would stay in memory
                keys, values = (file.get_slice(f"{side}.{layer}")[there] for side in ("key", "value"))
                digests.add(f"key.{layer}", rows.start, keys)
                digests.add(f"value.{layer}", rows.start, values)
                store.store_chunks(layer, rows, (keys.to(device), values.to(device)), lengths[there])
            store.close()
    for number, (found_digest, digest) in enumerate(zip(digests.rows(), written[first:]), first):
        if found_digest != digest:
            raise ValueError(f"the states of chunk {number} in {os.path.basename(path)} are not those that were saved")


def copy_states(
    source: KeyValueStore, target: KeyValueStore, pairs: Sequence[tuple[int, int]], lengths: Sequence[int]
) -> None:
    """Copy chunks of one store to rows of another: pairs of (row of `target`, row of `source`), and the tokens of each
    chunk.
    """
    runs = list(_runs(pairs, lengths))
    for layer in range(len(source.layers)):
        for new, old, count, length in runs:
            row = sum(side[0].numel() for side in source.read(layer, slice(old, old + 1), length))
            step = max(1, PIECE // (8 * row))
            for begin in range(0, count, step):
                rows = min(step, count - begin)
                there, here = (slice(first + begin, first + begin + rows) for first in (old, new))
                target.store_chunks(layer, here, source.read(layer, there, length), [length] * rows)
                source.close()
                target.close()


def _runs(pairs: Sequence[tuple[int, int]], lengths: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(first row of the target, first row of the source, rows, tokens) of chunks of one length that are neighbours in
    both.
    """
    begin = 0
    for end in range(1, len(pairs) + 1):
        following = (pairs[end - 1][0] + 1, pairs[end - 1][1] + 1)
        if end == len(pairs) or pairs[end] != following or lengths[end] != lengths[begin]:
            yield *pairs[begin], end - begin, lengths[begin]
            begin = end


def _pieces(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of rows (of at most 8 bytes a number) that are in memory at once."""
    step = max(1, PIECE // (8 * torch.Size(shape[1:]).numel()))
    for begin in range(0, shape[0], step):
        yield slice(begin, min(begin + step, shape[0]))
