"""Accuracy against length, a line for each method, with Wilson intervals and the number of samples."""

from __future__ import annotations

import argparse
from typing import Any

from evaluating.means import wilson
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .drawing import plt, save, styles, token_axis
from .evaluation import chosen_methods, samples


# Labels are spelled out; the methods of an evaluation have short names
NAMES = {
    "adapter": "adapter",
    "local_window": "its local window alone",
    "full_attention": "full attention",
    "parallel_windows": "parallel windows",
    "bm25": "BM25, the four best chunks",
    "adapter_read_1": "one chunk read in full, chosen by the adapter",
}


def accuracy(args: argparse.Namespace) -> None:
    found = [sample for folder in args.results for sample in samples(folder, args.task)]
    chosen = chosen_methods(found, args.methods)
    if any(sample["metric"] != "accuracy" for sample in found):
        raise SystemExit(f"error: `--task` is {args.task!r}, whose scores are not accuracies; name another task.")
    lengths = sorted({sample["length"] for sample in found})
    layout = ConstrainedLayoutEngine(rect=(0, 0.05, 1, 0.95))  # room for the last row of counts
    figure, panel = plt.subplots(figsize=(7, 4.2), layout=layout)
    for place, (method, style) in enumerate(styles(chosen).items()):
        scores: dict[int, list[float]] = {}
        for sample in found:
            if sample["method"] == method:
                scores.setdefault(sample["length"], []).append(sample["score"])
        _draw(panel, dict(sorted(scores.items())), NAMES.get(method, method), style, place)
    token_axis(panel, lengths)
    panel.set_xlabel("")
    panel.text(
        0.5, -0.1, "tokens; below: samples of each point", ha="center", va="top", transform=panel.transAxes, fontsize=8
    )
    panel.set(ylim=(-0.05, 1.05), ylabel=f"{args.task}: accuracy, 95 % intervals")
    figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=3)
    save(figure, args.output)


def _draw(panel: Any, scores: dict[int, list[float]], label: str, style: dict[str, Any], place: int) -> None:
    """A method's line with its intervals, and a row of counts under the axis.

    `scores` are by length, and `place` is the method's number.
    """
    means = [sum(right) / len(right) for right in scores.values()]
    bounds = [wilson(sum(right), len(right)) for right in scores.values()]
    errors = [[max(0.0, mean - low) for mean, (low, _) in zip(means, bounds)]]
    errors.append([max(0.0, high - mean) for mean, (_, high) in zip(means, bounds)])
    places = [length * 1.04 ** (place - 2) for length in scores]  # intervals of one length stand beside each other
    panel.errorbar(places, means, errors, **style, label=label, capsize=2, elinewidth=0.7, linewidth=1.2)
    under = {
        "xycoords": ("data", "axes fraction"),
        "ha": "center",
        "va": "top",
        "fontsize": 7,
        "color": style["color"],
    }
    for length, right in scores.items():
        panel.annotate(str(len(right)), (length, -0.16 - 0.05 * place), annotation_clip=False, **under)
    under |= {"xycoords": "axes fraction", "ha": "right"}
    panel.annotate(label.partition(",")[0], (0.02, -0.16 - 0.05 * place), annotation_clip=False, **under)
