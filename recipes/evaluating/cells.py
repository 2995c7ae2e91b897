"""Cells of tables of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cell(result: Mapping[str, Any], scale: float = 1) -> str:
    """A mean of `summarize`, times `scale`, with its interval and the number of samples."""
    part = "" if result["samples"] == result["planned"] else f" of {result['planned']}"
    count = f" ({result['samples']}{part})"
    if "perplexity" in result:
        return f"{result['perplexity']:.2f}{count}"
    mean = f"{scale * result['mean']:.2f}"
    if "wilson_95" in result:
        low, high = (scale * bound for bound in result["wilson_95"])
        return f"{mean} [{low:.2f}, {high:.2f}]{count}"
    error = f" ± {scale * result['standard_error']:.2f}" if "standard_error" in result else ""
    exact = f", exact {scale * result['exact']:.2f}" if "exact" in result else ""
    return f"{mean}{error}{exact}{count}"
