"""The tables of an evaluation: a row for each method, a column for each length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evaluating.averages import RULER, ruler_averages
from evaluating.cells import cell
from evaluating.record_tables import record_tables
from focus_peft.hub.markdown import table
from focus_peft.tasks import RECORD_TASKS


def tables(results: Sequence[Mapping[str, Any]], skipped: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table for every task that is made from a seed or texts, and one for all of a benchmark's records."""
    parts = []
    names = dict.fromkeys(entry["task"] for entry in [*results, *skipped])
    for task in (name for name in names if name not in RECORD_TASKS):
        own = [result for result in results if result["task"] == task]
        why = [entry for entry in skipped if entry["task"] == task]
        head = {"accuracy": "accuracy [95 % interval]", "cross_entropy": "perplexity"}
        metric = head.get(own[0]["metric"], "mean score ± standard error") if own else "not run"
        parts.append(f"## {task}: {metric}\n\n{_grid([*own, *why], cell)}")
        if why:
            notes = dict.fromkeys(
                f"- {entry['method']}, {entry['length']:,} tokens: {entry['reason']}" for entry in why
            )
            parts.append("\n".join(["Not run:", "", *notes]))
        if paired := [result for result in own if "above_adapter" in result]:
            head_line = (
                f"### {task}: cross-entropy above the adapter's on the same texts, in nats a token ± standard error"
            )
            parts.append(f"{head_line}\n\n{_grid(paired, _difference)}")
    if means := ruler_averages(results):
        rows = _grid(means, lambda entry: f"{entry['mean']:.2f}")
        parts.append(f"## RULER: mean of its {len(RULER)} tasks above\n\n{rows}")
    return "\n\n".join([*parts, *record_tables(results, skipped)]) + "\n"


def _grid(entries: Sequence[Mapping[str, Any]], text: Callable[[Mapping[str, Any]], str]) -> str:
    """A table of what `text` says of each entry that was run."""
    lengths = sorted({entry["length"] for entry in entries})
    cells = {(entry["method"], entry["length"]): text(entry) for entry in entries if "reason" not in entry}
    methods = dict.fromkeys(entry["method"] for entry in entries)
    rows = [[method, *(cells.get((method, length), "–") for length in lengths)] for method in methods]
    return table(["tokens", *(f"{length:,}" for length in lengths)], rows)


def _difference(result: Mapping[str, Any]) -> str:
    found = result["above_adapter"]
    error = f" ± {found['standard_error']:.3f}" if "standard_error" in found else ""
    return f"{found['mean']:+.3f}{error} ({found['samples']})"
