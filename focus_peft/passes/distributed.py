"""Whether other processes work along, and which of them speaks to the user."""

from __future__ import annotations

import sys

import torch


def is_distributed() -> bool:
    """Whether other processes work along."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def shows_progress(wanted: bool | None) -> bool:
    """Whether to show a progress bar: as wanted, or on the terminal of the first process."""
    if wanted is not None:
        return wanted
    return sys.stderr.isatty() and not (is_distributed() and torch.distributed.get_rank() > 0)
