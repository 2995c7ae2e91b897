"""The tables of ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluating.cells import cell
from evaluating.configuration import length_name

from ablating.configuration import words
from focus_peft.hub.markdown import table


def tables(entries: Sequence[dict[str, Any]]) -> str:
    """Markdown: for every study a table with a row for each variant and a column for each task and length."""
    parts = []
    for study in dict.fromkeys(entry["study"] for entry in entries):
        own = [entry for entry in entries if entry["study"] == study]
        parts.append(f"## {study}\n\n{_grid(own)}\n\n" + "\n".join(note for entry in own for note in _notes(entry)))
    return "\n\n".join(parts) + "\n"


def _grid(entries: Sequence[dict[str, Any]]) -> str:
    results = [result for entry in entries for result in entry.get("results", [])]
    methods = dict.fromkeys(result["method"] for result in results) or {None: None}
    columns = dict.fromkeys((result["task"], result["length"]) for result in results)
    sizes_differ = len({entry.get("parameters") for entry in entries} - {None}) > 1
    head = ["", *(["parameters"] if sizes_differ else [])]
    head += [f"{task}, {length_name(length)}{'' if length is None else ' tokens'}" for task, length in columns]
    rows = []
    for entry in entries:
        for method in methods:
            mine = [result for result in entry.get("results", []) if result["method"] == method]
            found = {(result["task"], result["length"]): cell(result) for result in mine}
            name = entry["variant"] if len(methods) < 2 else f"{entry['variant']}: {method}"
            size = [f"{entry['parameters'] / 1e6:.3g}M" if mine else "–"] if sizes_differ else []
            seconds = sum(result["seconds_per_sample"] * result["samples"] for result in mine)
            mean = f"{seconds / sum(result['samples'] for result in mine):.3g}" if mine else "–"
            rows.append([name, *size, *(found.get(column, "–") for column in columns), mean])
    return table([*head, "seconds a sample"], rows)


def _notes(entry: dict[str, Any]) -> list[str]:
    """What a variant changes, and what was not run."""
    changes = [f"{part} `{' '.join(words(entry[part]))}`" for part in ("train", "evaluate") if entry[part]]
    failed = f"; failed: {entry['failed']}" if "failed" in entry else ""
    skipped = [
        f"  - {r['method']}, {r['task']}, {length_name(r['length'])}: {r['reason']}" for r in entry.get("not_run", [])
    ]
    return [f"- {entry['variant']}: {', '.join(changes) or 'nothing is changed'}{failed}", *skipped]
