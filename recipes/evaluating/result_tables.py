"""The tables of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluating.record_tables import RULER, record_tables, ruler_averages
from focus_peft.tasks import RECORD_TASKS


def table(results: Sequence[Mapping[str, Any]], skipped: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: for every task a table with a row for each method and a column for each length; one for all of a benchmark's records."""
    parts = []
    names = dict.fromkeys(entry["task"] for entry in [*results, *skipped])
    for task in (name for name in names if name not in RECORD_TASKS):
        own = [result for result in results if result["task"] == task]
        why = [entry for entry in skipped if entry["task"] == task]
        lengths = sorted({entry["length"] for entry in [*own, *why]})
        cells = {(result["method"], result["length"]): cell(result) for result in own}
        head = {"accuracy": "accuracy [95 % interval]", "cross_entropy": "perplexity"}
        metric = head.get(own[0]["metric"], "mean score ± standard error") if own else "not run"
        lines = [
            f"## {task}: {metric}",
            "",
            *_grid(cells, lengths, dict.fromkeys(entry["method"] for entry in [*own, *why])),
        ]
        notes = dict.fromkeys(f"- {entry['method']}, {entry['length']:,} tokens: {entry['reason']}" for entry in why)
        parts.append("\n".join([*lines, *(["", "Not run:", "", *notes] if notes else [])]))
        if paired := [result for result in own if "above_adapter" in result]:
            parts.append(_differences(task, paired))
    if means := ruler_averages(results):
        cells = {(entry["method"], entry["length"]): f"{entry['mean']:.2f}" for entry in means}
        rows = _grid(cells, sorted({entry["length"] for entry in means}), dict.fromkeys(m["method"] for m in means))
        parts.append("\n".join([f"## RULER: mean of its {len(RULER)} tasks above", "", *rows]))
    return "\n\n".join([*parts, *record_tables(results, skipped)]) + "\n"


def _differences(task: str, results: Sequence[Mapping[str, Any]]) -> str:
    """How much higher each method's cross-entropy is than the adapter's."""
    cells = {}
    for result in results:
        found = result["above_adapter"]
        error = f" ± {found['standard_error']:.3f}" if "standard_error" in found else ""
        cells[result["method"], result["length"]] = f"{found['mean']:+.3f}{error} ({found['samples']})"
    head = f"### {task}: cross-entropy above the adapter's on the same texts, in nats a token ± standard error"
    lengths = sorted({result["length"] for result in results})
    return "\n".join([head, "", *_grid(cells, lengths, dict.fromkeys(result["method"] for result in results))])


def _grid(cells: Mapping[tuple[str, int], str], lengths: Sequence[int], methods: Iterable[str]) -> list[str]:
    lines = ["| tokens | " + " | ".join(f"{length:,}" for length in lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    rows = ([method, *(cells.get((method, length), "–") for length in lengths)] for method in methods)
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def cell(result: Mapping[str, Any]) -> str:
    """A mean of `summarise` with its interval and the number of samples, for a table."""
    part = "" if result["samples"] == result["planned"] else f" of {result['planned']}"
    count = f" ({result['samples']}{part})"
    if "perplexity" in result:
        return f"{result['perplexity']:.2f}{count}"
    if "wilson_95" in result:
        low, high = result["wilson_95"]
        return f"{result['mean']:.2f} [{low:.2f}, {high:.2f}]{count}"
    error = f" ± {result['standard_error']:.2f}" if "standard_error" in result else ""
    return f"{result['mean']:.2f}{error}{count}"
