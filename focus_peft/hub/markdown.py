"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table. Every value becomes one line of text, and its `|` is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def words(value: Any) -> str:
    """A value of a YAML or JSON file as text, without the brackets of lists and mappings."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {entry}" for name, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values in one line: "length 4096, seed 0"."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _cell(value: Any) -> str:
    return words(value).replace("|", "\\|").replace("\n", " ")
