"""The results in a model card: a table for each task that was measured at several lengths, and one for all other numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markdown import cell, pairs, table
from .results import ERROR, INTERVAL, LENGTH, SAMPLES, Result


def results_section(results: Sequence[Result], figure: str | None, name: str) -> str:
    """The section with its heading. `figure` is the name of a picture beside the card, `name` what the card is about."""
    parts = []
    if results:
        groups: dict[tuple[str, str, str], list[Result]] = {}
        for result in results:
            groups.setdefault((result.task, result.dataset, result.metric), []).append(result)
        others = []
        for group in groups.values():
            if _by_length(group):
                parts.append(_lengths(group))
            else:
                others += group
        if others:
            parts.append(_others(others))
        commands = dict.fromkeys((r.command, r.machine, pairs(r.versions)) for r in results)
        parts.append("Measured with:")
        parts.append("\n".join(f"- `{command}` on {machine} ({versions})" for command, machine, versions in commands))
        parts.append("Each number with its settings is in `results.json`.")
    if figure:
        parts.append(f"![Results of {name}]({figure})")
    return "## Results\n\n" + ("\n\n".join(parts) or "None were published with this adapter.")


def _by_length(group: Sequence[Result]) -> bool:
    """Whether a row for each subject and a column for each length say all."""
    places = {(result.subject, result.settings.get(LENGTH)) for result in group}
    lengths = {length for _, length in places}
    # an int alone can be put in order; a subject twice at a length differs in something else
    return len(lengths) > 1 and all(type(length) is int for length in lengths) and len(places) == len(group)


def _lengths(group: Sequence[Result]) -> str:
    """A caption with what all have in common, and the table."""
    first = group[0]
    common = {
        name: value for name, value in first.settings.items() if all(r.settings.get(name) == value for r in group)
    }
    caption = f"**{first.task}**, {first.metric} ({', '.join(filter(None, [first.dataset, pairs(common)]))}):"
    lengths = sorted({result.settings[LENGTH] for result in group})
    values = {(result.subject, result.settings[LENGTH]): _value(result, common) for result in group}
    rows = [
        [cell(subject), *(values.get((subject, length), "–") for length in lengths)]
        for subject in dict.fromkeys(result.subject for result in group)
    ]
    return f"{caption}\n\n" + table(["tokens", *(f"{length:,}" for length in lengths)], rows)


def _value(result: Result, common: Mapping[str, Any]) -> str:
    """A number, its interval, and other settings that are not those of all."""
    own = {name: value for name, value in result.settings.items() if name not in common and name != LENGTH}
    text = f"{result.value:.4g}"
    if isinstance(own.get(INTERVAL), list):
        text += f" [{', '.join(f'{bound:.2g}' for bound in own.pop(INTERVAL))}]"
    if ERROR in own:
        text += f" ± {own.pop(ERROR):.2g}"
    if SAMPLES in own:
        text += f" n={own.pop(SAMPLES)}"
    return cell(text + (f" ({pairs(own)})" if own else ""))


def _others(results: Sequence[Result]) -> str:
    """A row for each number."""
    head = ("task", "dataset", "settings", "measured", "metric", "value")
    rows = [
        (cell(r.task), cell(r.dataset), cell(pairs(r.settings)), cell(r.subject), cell(r.metric), f"{r.value:.4g}")
        for r in results
    ]
    return table(head, rows)
