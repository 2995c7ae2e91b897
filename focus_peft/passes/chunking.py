"""Pure functions: how ids are split, cut and padded. No model is touched here."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def cut(ids: Sequence[int], chunk_size: int) -> list[list[int]]:
    """Cut ids from the left into chunks of `chunk_size`; a shorter last chunk is kept (method: the memory)."""
    return [list(ids[start : start + chunk_size]) for start in range(0, len(ids), chunk_size)]


def with_bos(ids: Sequence[int], bos: int | None) -> list[int]:
    """The ids with `bos` before them, unless it is None or they already start with it."""
    if bos is None or (len(ids) > 0 and ids[0] == bos):
        return list(ids)
    return [bos, *ids]


def pad_left(rows: Sequence[Sequence[int]], value: int = 0, width: int | None = None) -> torch.Tensor:
    """Rows of ids as one tensor (rows, `width` or longest), filled with `value` on the left."""
    width = max(len(row) for row in rows) if width is None else width
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)


def pad_right(rows: Sequence[Sequence[int]], value: int = 0) -> torch.Tensor:
    """Rows of ids as one tensor (rows, longest), filled with `value` on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([list(row) + [value] * (longest - len(row)) for row in rows], dtype=torch.long)
