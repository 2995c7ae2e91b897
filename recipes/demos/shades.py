"""How dark chunks are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def shades(shares: Sequence[float] | torch.Tensor) -> list[float]:
    """Shares of attention as parts of the largest, from 0 to 1."""
    values = [float(share) for share in shares]
    largest = max([1e-9, *values])
    return [value / largest for value in values]
