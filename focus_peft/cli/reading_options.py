"""The options of a command that its call reads with, as `FocusConfig` declares them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any

from ..options import OPTIONS, READING_FIELDS


def add_reading_options(parser: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    """Add an option for each field that may change between training and reading.

    `leave_out` are fields that mean something else to this command. A command is one process, so none has
    `spread_chunks`.
    """
    names = set(READING_FIELDS) - {"spread_chunks", *leave_out}
    parser.set_defaults(reading_fields=names)
    add = parser.add_argument_group("windows and decoding", "Defaults to what the adapter's configuration says.")
    for option in (option for option in OPTIONS if option.name in names):
        must = option.metadata["must"]
        kind: dict[str, Any] = {"type": _value_of(option), "choices": must.choices or None}
        if must.kind is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif not must.choices:
            kind["metavar"] = "N" if must.kind is int else "DIR"
        told = option.metadata["help"].replace("`", "").replace("%", "%%")
        add.add_argument(f"--{option.name.replace('_', '-')}", default=None, help=told, **kind)


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, for `FocusConfig.with_overrides`."""
    return {name: getattr(args, name) for name in args.reading_fields}


def _value_of(option: Field) -> Callable[[str], Any]:
    """Reads the value of a field from a command line."""
    must = option.metadata["must"]

    def value_of(text: str) -> Any:
        try:
            value = must.kind(text)
        except ValueError:
            value = text
        if not must.choices and not must.holds(value):
            raise argparse.ArgumentTypeError(f"must be {must.words.removesuffix(' or None')}, got {text!r}")
        return value

    return value_of
