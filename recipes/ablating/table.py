"""The tables of ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluating.configuration import length_name
from evaluating.result_tables import cell

from ablating.configuration import words


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Markdown: for every study a table with a row for each variant and a column for each task and length."""
    parts = []
    for study in dict.fromkeys(entry["study"] for entry in entries):
        own = [entry for entry in entries if entry["study"] == study]
        results = [(entry, result) for entry in own for result in entry.get("results", [])]
        methods = dict.fromkeys(result["method"] for _, result in results)
        columns = dict.fromkeys((result["task"], result["length"]) for _, result in results)
        heads = ["parameters"] if len({entry.get("parameters") for entry in own} - {None}) > 1 else []
        heads += [f"{task}, {length_name(length)}{'' if length is None else ' tokens'}" for task, length in columns]
        lines = ["| | " + " | ".join([*heads, "seconds a sample"]) + " |", "|---" * (len(heads) + 2) + "|"]
        for entry in own:
            for method in methods or [None]:
                mine = [r for r in entry.get("results", []) if r["method"] == method]
                cells = [f"{entry['parameters'] / 1e6:.3g}M" if mine else "–"] if heads[:1] == ["parameters"] else []
                found = {(result["task"], result["length"]): cell(result) for result in mine}
                cells += [found.get(column, "–") for column in columns]
                seconds = [(result["seconds_per_sample"], result["samples"]) for result in mine]
                mean = sum(s * n for s, n in seconds) / max(1, sum(n for _, n in seconds))
                name = entry["variant"] if len(methods) < 2 else f"{entry['variant']}: {method}"
                lines.append(f"| {name} | " + " | ".join([*cells, f"{mean:.3g}" if mine else "–"]) + " |")
        notes = []
        for entry in own:
            changes = [f"{part} `{' '.join(words(entry[part]))}`" for part in ("train", "evaluate") if entry[part]]
            what = ", ".join(changes) or "nothing is changed"
            notes.append(
                f"- {entry['variant']}: {what}" + (f"; failed: {entry['failed']}" if "failed" in entry else "")
            )
            notes += [
                f"  - {r['method']}, {r['task']}, {length_name(r['length'])}: {r['reason']}"
                for r in entry.get("not_run", [])
            ]
        parts.append("\n".join([f"## {study}", "", *lines, "", *notes]))
    return "\n\n".join(parts) + "\n"
