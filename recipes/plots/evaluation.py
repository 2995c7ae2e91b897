"""Scores over length and depth, and perplexity against length, from the samples of an evaluation."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

from lib.command_line import listed
from matplotlib.patches import Rectangle

from .drawing import plt, save, short, styles, token_axis


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """The samples of a task in an evaluation's folder."""
    file = folder / "samples.jsonl"
    if not file.is_file():
        raise SystemExit(
            f"error: `--results` {str(folder)!r} holds no samples.jsonl; name the folder of an evaluation."
        )
    lines = file.read_bytes().splitlines(keepends=True)
    read = [json.loads(line) for line in lines if line.endswith(b"\n")]  # the last one may still be being written
    found = [sample for sample in read if sample["task"] == task]
    if not found:
        there = ", ".join(sorted({sample["task"] for sample in read}))
        raise SystemExit(f"error: `--results` {str(folder)!r} has no samples of {task!r}, but of {there}.")
    return found


def cells(found: list[dict[str, Any]], bands: int) -> dict[tuple[int, int], float]:
    """Mean scores by (band of depth, length); the last band has depth 1."""
    groups: dict[tuple[int, int], list[float]] = {}
    for sample in found:
        band = min(bands - 1, math.floor(sample["depth"] * bands + 1e-9))
        groups.setdefault((band, sample["length"]), []).append(sample["score"])
    return {place: fmean(scores) for place, scores in groups.items()}


def at_shared_places(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples of places that every method has at all of its lengths: places differ more than methods do."""
    places: dict[tuple[str, int], set[int]] = {}
    for sample in found:
        places.setdefault((sample["method"], sample["length"]), set()).add(sample["number"])
    shared = set.intersection(*places.values())
    return [sample for sample in found if sample["number"] in shared]


def passkey(args: argparse.Namespace) -> None:
    found = [sample for sample in samples(args.results, args.task) if sample["method"] == args.method]
    if not found or found[0]["depth"] is None:
        raise SystemExit(f"error: there are no samples of {args.task!r} with a depth and the method {args.method!r}.")
    lengths = sorted({sample["length"] for sample in found})
    means = cells(found, args.bands)
    grid = [[means.get((band, length), math.nan) for length in lengths] for band in range(args.bands)]
    figure, panel = plt.subplots(figsize=(2.0 + 0.8 * len(lengths), 1.4 + 0.32 * args.bands), layout="constrained")
    panel.imshow(grid, vmin=0, vmax=1, cmap="Greys_r", aspect="auto")
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            hatch = "////" if math.isnan(value) else None  # what was not run must not look like a score
            box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="0.75", linewidth=0.6, hatch=hatch)
            panel.add_patch(box)
            if not math.isnan(value):
                color = "white" if value < 0.45 else "black"
                panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    counts = Counter(sample["length"] for sample in found)  # a cell of a single sample must not look like one of many
    panel.set_xticks(range(len(lengths)), [f"{short(length)}\nn = {counts[length]}" for length in lengths])
    panel.set_yticks(range(args.bands), [f"{band / args.bands:.0%}" for band in range(args.bands)])
    panel.set(xlabel="tokens (hatched: not run)", ylabel="depth, from", title=f"{args.task}: {args.method}")
    save(figure, args.output)


def chosen_methods(found: list[dict[str, Any]], words: str | None) -> list[str]:
    """The methods that `--methods` names, or all that there are samples of."""
    there = list(dict.fromkeys(sample["method"] for sample in found))
    chosen = there if words is None else listed(words)
    for method in chosen:
        if method not in there:
            raise SystemExit(f"error: `--methods` names {method!r}, but there are samples of {', '.join(there)}.")
    return chosen


def perplexity(args: argparse.Namespace) -> None:
    found = samples(args.results, "perplexity")
    chosen = chosen_methods(found, args.methods)
    found = at_shared_places([sample for sample in found if sample["method"] in chosen])
    if not found:
        raise SystemExit(
            f"error: no place in `--results` {str(args.results)!r} was read by every method at every length; run more "
            "of it, or draw fewer `--methods`."
        )
    lengths, count = sorted({sample["length"] for sample in found}), len({sample["number"] for sample in found})
    figure, panel = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for method, style in styles(chosen).items():
        scores = {n: [s["score"] for s in found if (s["method"], s["length"]) == (method, n)] for n in lengths}
        read = [length for length in lengths if scores[length]]
        values = [math.exp(fmean(scores[length])) for length in read]
        panel.plot(read, values, **style, label=method)
    token_axis(panel, lengths)
    panel.set_ylabel(f"perplexity of the last tokens, {count} places")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=4)
    save(figure, args.output)
