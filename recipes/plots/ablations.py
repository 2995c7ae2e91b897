"""One study of `ablations.py`: what each variant scores."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from evaluating.means import Z

from .drawing import plt, save, short, styles


def ablations(args: argparse.Namespace) -> None:
    entries = json.loads(args.results.read_text(encoding="utf-8")).get("variants", [])
    own = [entry for entry in entries if entry["study"] == args.study and entry.get("results")]
    if not own:
        there = ", ".join(dict.fromkeys(entry["study"] for entry in entries))
        raise SystemExit(f"error: `--study` is {args.study!r}, but {str(args.results)!r} has results of {there}.")
    names = [entry["variant"] for entry in own]
    found = [(names.index(entry["variant"]), result) for entry in own for result in entry["results"]]
    tasks = list(dict.fromkeys(result["task"] for _, result in found))
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(1.2 + 3.2 * len(tasks), 3.4), squeeze=False, layout="constrained"
    )
    for panel, task in zip(panels[0], tasks):
        kinds = dict.fromkeys((result["method"], result["length"]) for _, result in found if result["task"] == task)
        for (method, length), style in styles(list(kinds)).items():
            mine = [(x, r) for x, r in found if (r["task"], r["method"], r["length"]) == (task, method, length)]
            middle, low, high = zip(*(interval(result) for _, result in mine))
            if not all(name.isdigit() for name in names):  # a line would say that there is something in between
                style["linestyle"] = ""
            errors = [[m - x for m, x in zip(middle, low)], [x - m for m, x in zip(middle, high)]]
            label = f"{method}, whole records" if length is None else f"{method}, {short(length)} tokens"
            panel.errorbar([x for x, _ in mine], middle, errors, **style, capsize=3, elinewidth=0.8, label=label)
        metric = next(result["metric"] for _, result in found if result["task"] == task)
        panel.set(title=task, ylabel="perplexity" if metric == "cross_entropy" else metric)
        if metric != "cross_entropy":
            panel.set_ylim(-0.03, 1.03)
        slanted: dict[str, Any] = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
        panel.set_xticks(range(len(names)), names, **(slanted if max(map(len, names)) > 6 else {}))
        panel.set_xlim(-0.4, len(names) - 0.6)
        panel.set_xlabel(args.study)
        panel.legend(frameon=False, fontsize=8)
    save(figure, args.output)


def interval(result: dict[str, Any]) -> tuple[float, float, float]:
    """Mean, and what holds it with 95 %, as far as it is known."""
    mean, error = result["mean"], Z * result.get("standard_error", 0.0)
    low, high = result.get("wilson_95", (mean - error, mean + error))
    low, high = min(low, mean), max(high, mean)  # where all answers are right or wrong, it may be rounded to within
    if result["metric"] == "cross_entropy":
        return math.exp(mean), math.exp(low), math.exp(high)
    return mean, low, high
