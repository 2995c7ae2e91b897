"""The results in a model card: a table for each task that was measured at several lengths, and one for all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markdown import pairs, table
from .results import ERROR, INTERVAL, LENGTH, SAMPLES, Result


def results_section(results: Sequence[Result], figure: str | None, name: str) -> str:
    """The section without its heading; empty without results and figure.

    Args:
        results (`Sequence[Result]`): The numbers.
        figure (`str`, *optional*): The name of a picture beside the card.
        name (`str`): What the card is about.
    """
    parts, others = [], []
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.task, result.dataset, result.metric), []).append(result)
    for group in groups.values():
        if _has_lengths(group):
            parts.append(_lengths_table(group))
        else:
            others += group
    if others:
        head = ("task", "dataset", "settings", "measured", "metric", "value")
        rows = [(r.task, r.dataset, pairs(r.settings), r.subject, r.metric, f"{r.value:.4g}") for r in others]
        parts.append(table(head, rows))
    if results:
        commands = dict.fromkeys((r.command, r.machine, pairs(r.versions)) for r in results)
        lines = [f"- `{command}` on {machine} ({versions})" for command, machine, versions in commands]
        parts += ["Measured with:", "\n".join(lines), "Each number with its settings is in `results.json`."]
    if figure:
        parts.append(f"![Results of {name}]({figure})")
    return "\n\n".join(parts)


def _has_lengths(group: Sequence[Result]) -> bool:
    """Whether a row for each subject and a column for each length hold all numbers of a task."""
    places = {(result.subject, result.settings.get(LENGTH)) for result in group}
    lengths = {length for _, length in places}
    # Only an int can be put in order; a subject with two numbers of one length differs in something else
    return len(lengths) > 1 and all(type(length) is int for length in lengths) and len(places) == len(group)


def _lengths_table(group: Sequence[Result]) -> str:
    """A caption with what all numbers have in common, and the table."""
    first = group[0]
    common = {
        name: value for name, value in first.settings.items() if all(r.settings.get(name) == value for r in group)
    }
    caption = f"**{first.task}**, {first.metric} ({', '.join(filter(None, [first.dataset, pairs(common)]))}):"
    lengths = sorted({result.settings[LENGTH] for result in group})
    values = {(result.subject, result.settings[LENGTH]): _value(result, common) for result in group}
    rows = [
        [subject, *(values.get((subject, length), "–") for length in lengths)]
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
    return text + (f" ({pairs(own)})" if own else "")
