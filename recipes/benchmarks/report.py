"""What a measurement found: medians, ratios, and their table."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.measurements import RATIOS
from focus_peft.hub.markdown import table


def summarized(
    measurement: str, runs: dict[str, list[dict[str, Any]]], gradients: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Medians of what each way has measured, and ratios where both sides have been measured."""
    ways: dict[str, dict[str, Any]] = {}
    for way, results in runs.items():
        ways[way] = {}
        for name in results[0]:
            values = [result[name] for result in results]
            known = [value for value in values if value is not None]
            ways[way][name] = round(statistics.median(known), 4) if known else None
            if len(set(values)) > 1:
                ways[way][f"all_{name}"] = values
        if "labels" in results[0]:
            ways[way]["labels_per_second"] = round(ways[way]["labels"] / ways[way]["seconds"], 2)
    ratios: dict[str, float] = {}
    for name, over, under in RATIOS[measurement]:
        if ways.get(over, {}).get(name) and ways.get(under, {}).get(name):
            ratios[f"{name}: {over} / {under}"] = round(ways[over][name] / ways[under][name], 3)
    for scheme in ("streaming", "exact"):
        naive = f"naive {scheme}"
        if naive in gradients and scheme in gradients:
            distance = torch.dist(gradients[naive], gradients[scheme]) / gradients[naive].norm()
            ratios[f"relative difference of gradients, {scheme}"] = float(distance)
    rounds = min(map(len, runs.values()))  # fewer than were asked for, if the run is cut off
    return {"repeats": rounds, "ways": ways, "ratios": ratios}


def markdown_of(result: dict[str, Any]) -> str:
    """The Markdown of a result: a row for each way, a line for each ratio."""
    columns = [name for name in next(iter(result["ways"].values())) if not name.startswith("all_")]
    columns = [name for name in columns if any(way.get(name) is not None for way in result["ways"].values())]
    rows = [
        [way, *("" if values.get(name) is None else f"{values[name]:g}" for name in columns)]
        for way, values in result["ways"].items()
    ]
    ratios = [f"- {name}: {value:.3g}" for name, value in result["ratios"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [table(["", *(name.replace("_", " ") for name in columns)], rows), "", *ratios, ""]
    lines.append(
        f"Medians of {result['repeats']} processes; {result['dtype']}, {result['threads']} threads, "
        f"{result['machine']}, {versions}."
    )
    return "\n".join(lines) + "\n"
