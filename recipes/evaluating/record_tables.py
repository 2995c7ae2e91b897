"""Tables of published records: a row for each task, a column for each method, and averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluating.averages import averages
from evaluating.cells import cell
from evaluating.configuration import length_name
from focus_peft.hub.markdown import table
from focus_peft.tasks import RECORD_TASKS, Benchmark


def record_tables(results: Sequence[Mapping[str, Any]], skipped: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table in Markdown for each benchmark and length, in percent."""
    entries = [entry for entry in [*results, *skipped] if entry["task"] in RECORD_TASKS]
    tables = []
    for benchmark, length in dict.fromkeys((RECORD_TASKS[e["task"]].benchmark, e["length"]) for e in entries):
        own = [e for e in entries if (RECORD_TASKS[e["task"]].benchmark, e["length"]) == (benchmark, length)]
        tables.append(_table(benchmark, length, own))
    return tables


def _table(benchmark: Benchmark, length: int | None, entries: Sequence[Mapping[str, Any]]) -> str:
    ran = [entry for entry in entries if "mean" in entry]
    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    what = "whole records" if length is None else f"records of at most {length_name(length)} tokens"
    cells = {(entry["task"], entry["method"]): cell(entry, scale=100) for entry in ran}
    rows = [
        [task.short_name, task.metric, *(cells.get((name, method), "–") for method in methods)]
        for name, task in RECORD_TASKS.items()
        if any(entry["task"] == name for entry in entries)
    ]
    means = averages(ran)
    for over in dict.fromkeys(entry["over"] for entry in means):
        own = {entry["method"]: f"{100 * entry['mean']:.2f}" for entry in means if entry["over"] == over}
        rows.append([f"**{over}**", "average", *(own.get(method, "–") for method in methods)])
    cut = [entry for entry in ran if entry.get("cut")]
    notes = [f"- {e['method']}, {_short(e)}: {e['cut']} of {e['samples']} prompts cut in the middle" for e in cut]
    notes += [f"- {e['method']}, {_short(e)}: not run. {e['reason']}" for e in entries if "reason" in e]
    lines = [f"## {benchmark.title}, {what}: percent", "", table(["task", "metric", *methods], rows)]
    return "\n".join([*lines, *(["", *dict.fromkeys(notes)] if notes else [])])


def _short(entry: Mapping[str, Any]) -> str:
    return RECORD_TASKS[entry["task"]].short_name
