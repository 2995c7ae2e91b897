"""Accuracy against length, a line for each method, with Wilson intervals and the number of samples; a panel for each
model.
"""

from __future__ import annotations

import argparse
from itertools import chain
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
    titles = args.titles or [""] * len(args.results)
    if len(titles) != len(args.results):
        raise SystemExit(f"error: `--titles` has {len(titles)} titles for {len(args.results)} panels; give one each.")
    found = [[sample for folder in folders for sample in samples(folder, args.task)] for folders in args.results]
    chosen = chosen_methods(list(chain(*found)), args.methods)
    if any(sample["metric"] != "accuracy" for sample in chain(*found)):
        raise SystemExit(f"error: `--task` is {args.task!r}, whose scores are not accuracies; name another task.")
    layout = ConstrainedLayoutEngine(rect=(0, 0.05, 1, 0.95))  # room for the last row of counts
    size = (2.6 + 4.4 * len(found), 4.2)
    figure, panels = plt.subplots(1, len(found), figsize=size, layout=layout, sharey=True, squeeze=False)
    lines: dict[str, Any] = {}
    for panel, title, of_panel in zip(panels[0], titles, found):
        lines |= _draw_panel(panel, title, of_panel, chosen)
    panels[0][0].set_ylabel(f"{args.task}: accuracy, 95 % intervals")
    figure.legend(list(lines.values()), list(lines), loc="outside upper center", frameon=False, fontsize=8, ncols=3)
    save(figure, args.output)


def _draw_panel(panel: Any, title: str, found: list[dict[str, Any]], chosen: list[str]) -> dict[str, Any]:
    """The chosen methods' lines. Returns what a legend shows of each, by its label."""
    lines = {}
    for place, (method, style) in enumerate(styles(chosen).items()):
        scores: dict[int, list[float]] = {}
        for sample in found:
            if sample["method"] == method:
                scores.setdefault(sample["length"], []).append(sample["score"])
        if scores:
            label = NAMES.get(method, method)
            lines[label] = _draw(panel, dict(sorted(scores.items())), label, style, place)
    token_axis(panel, sorted({sample["length"] for sample in found if sample["method"] in chosen}))
    panel.set(xlabel="", title=title, ylim=(-0.05, 1.05))
    under = "tokens; below: samples of each point"
    panel.text(0.5, -0.1, under, ha="center", va="top", transform=panel.transAxes, fontsize=8)
    return lines


def _draw(panel: Any, scores: dict[int, list[float]], label: str, style: dict[str, Any], place: int) -> Any:
    """A method's line with its intervals, and a row of counts under the axis. Returns what a legend shows of it.

    `scores` are by length, and `place` is the method's number.
    """
    means = [sum(right) / len(right) for right in scores.values()]
    bounds = [wilson(sum(right), len(right)) for right in scores.values()]
    errors = [[max(0.0, mean - low) for mean, (low, _) in zip(means, bounds)]]
    errors.append([max(0.0, high - mean) for mean, (_, high) in zip(means, bounds)])
    places = [length * 1.04 ** (place - 2) for length in scores]  # intervals of one length stand beside each other
    drawn = panel.errorbar(places, means, errors, **style, label=label, capsize=2, elinewidth=0.7, linewidth=1.2)
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
    return drawn
