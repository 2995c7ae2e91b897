"""How a field of the configuration is declared: its default, its check, its words and the group it stands in."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar


T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """What the value of a field must be.

    Attributes:
        holds (`Callable`): Whether a value is one.
        words (`str`): What it must be, for messages.
        kind (`type`): What a command line reads it as. Defaults to `str`.
        choices (`tuple[str, ...]`): All values there are, where they can be listed.
    """

    holds: Callable[[Any], bool]
    words: str
    kind: type = str
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise a ValueError unless a value is one; `name` says in the message what it is of."""
        if not self.holds(value):
            raise ValueError(f"{name} must be {self.words}, got {value!r}.")


def is_number(value: Any) -> bool:
    """Whether a field's value is a number. True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_size(value: Any) -> bool:
    return _is_count(value) and value > 0


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"one of {', '.join(map(repr, choices))}", choices=choices)


COUNT = Rule(_is_count, "an integer, 0 or above", int)
SIZE = Rule(_is_size, "a positive integer", int)
SIZE_OR_NONE = Rule(lambda value: value is None or _is_size(value), "a positive integer or None", int)
FLAG = Rule(lambda value: isinstance(value, bool), "True or False", bool)
FLAG_OR_NONE = Rule(lambda value: value is None or isinstance(value, bool), "True, False or None", bool)
WEIGHT = Rule(lambda value: is_number(value) and 0 <= value < math.inf, "a finite number, 0 or above", float)
SHARE = Rule(lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1", float)
SCALE = Rule(
    lambda value: value is None or is_number(value) and 0 < value < math.inf,
    "a finite number above 0, or None for 2 * r",
    float,
)
FOLDER = Rule(
    lambda value: value is None or isinstance(value, (str, os.PathLike)) and bool(str(value)),
    "the path of a directory or None",
)


def _is_layers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return bool(numbers) and all(map(_is_count, numbers))


LAYERS = Rule(lambda value: value is None or _is_layers(value), "the number of a layer, a list of them, or None", int)


def built(kind: type[T], values: Any, where: str) -> T:
    """A dataclass from what a file says; an instance stays as it is.

    Raises:
        ValueError: for what is no mapping, a name that is no field, or a field that is missing. `where` says in the
            message what the mapping is.
    """
    if isinstance(values, kind):
        return values
    known: dict[str, Field] = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} has {values!r}, where a mapping with {_listed(known)} belongs.")
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{where} has the unknown entry {_listed(unknown)}; there are {_listed(known)}.")
    required = [name for name, entry in known.items() if MISSING is entry.default is entry.default_factory]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{where} has {dict(values)!r}, which lacks {_listed(missing)}.")
    return kind(**values)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def check_module_names(option: str, value: Any) -> None:
    """Raise a ValueError unless these can name modules."""
    if not isinstance(value, (str, list)) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"`{option}` must be a list of names or a regular expression, got {value!r}.")
    if not value or "" in list(value):
        raise ValueError(
            f"`{option}` is empty or has an empty name ({value!r}); name at least one projection, or leave it out."
        )
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"`{option}` is {value!r}, which is no regular expression: {error}.") from error


def declared(
    group: str, default: Any, must: Rule | None, help: str, per_call: bool = False, each_process: bool = False
) -> Any:
    """A field, declared once: its docstring, its check, the options of a call and of a command, and its row in
    docs/configuration.md come from here.

    Args:
        group (`str`): What it controls.
        default: Its default.
        must (`Rule`, *optional*): What its values must be.
        help (`str`): What it means.
        per_call (`bool`): Whether `generate`, `encode` and `forward` take it as a keyword argument too. Defaults to
            False.
        each_process (`bool`): Whether processes that share chunks may differ in it. Defaults to False.
    """
    told = {"help": help, "group": group, "must": must, "per_call": per_call, "each_process": each_process}
    return field(default=default, metadata=told)


def declared_fields(config: Any) -> list[Field]:
    """The fields of a class that were declared here, inherited ones left out."""
    return [option for option in fields(config) if "group" in option.metadata]


def describe(config: Any) -> str:
    """The declared fields of a class by group, as its docstring lists them."""
    lines: list[str] = []
    group = None
    for option in declared_fields(config):
        if option.metadata["group"] != group:
            group = option.metadata["group"]
            lines += ["", f"    Parameters that control {group}:"]
        told = f"{option.name} (`{option.type}`): {option.metadata['help']}"
        lines.append(textwrap.fill(told, 119, initial_indent=" " * 8, subsequent_indent=" " * 12))
    return "\n".join(lines)
