"""Whether other processes work along."""

from __future__ import annotations

import torch


def is_distributed() -> bool:
    """Whether other processes work along."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
