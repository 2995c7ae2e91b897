"""What all pictures share: how lines are told apart, axes of tokens, and files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator


# Neighbors differ in line, in mark and in lightness, so colors are not needed
LINES = ("-", "--", ":", "-.", (0, (7, 2)))
MARKS = "os^Dvx*"
COLORS = ("black", "tab:blue", "tab:orange", "tab:green", "tab:purple", "0.6")


def styles(labels: Sequence[Any]) -> dict[Any, dict[str, Any]]:
    """For each label, how its line looks."""
    looks = zip(labels, cycle(LINES), cycle(MARKS), cycle(COLORS))
    return {
        label: {"linestyle": line, "marker": mark, "color": color, "markersize": 6}
        for label, line, mark, color in looks
    }


def token_axis(panel: Any, lengths: Sequence[int]) -> None:
    """Lengths from left to right, each double of the one before at the same distance."""
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(lengths))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda length, _: short(round(length))))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("tokens")


def short(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def save(figure: Any, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150, metadata={"Date": None} if output.suffix == ".svg" else None)
    plt.close(figure)
