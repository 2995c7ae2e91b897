"""`focus_peft/` is a house of rooms in an order (ARCHITECTURE.md), and no room imports one that comes after it.

`ROOMS` is the order. Every import counts, late and type-only ones too, and no two files import each other.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "focus_peft"

# A room, or a file that stands beside them, may import what stands above it in this table, and nothing below
ROOMS = (
    "peft_type",
    "saving",
    "adapter_file",
    "fields",
    "options",
    "foreign_options",
    "config",
    "frozen",
    "kv",
    "layer",
    "passes",
    "memory",
    "losses",
    "decoding",
    "other_tuners",
    "tuner",
    "encoding_tuner",
    "model",
    "hub",
    "registration",
    "__init__",
    "data",
    "tasks",
    "results",
    "trainer",
    "training_args",
    "sft",
    "run",
    "serve",
    "cli",
    "__main__",
)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> tuple[str, ...]:
    """Its dotted name below the package: ("passes", "reader"); a package is its `__init__`."""
    return file.relative_to(PACKAGE).with_suffix("").parts


def module_at(parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """The module that `focus_peft.<parts>` names, if it is one."""
    if PACKAGE.joinpath(*parts).is_dir():
        return (*parts, "__init__")
    return parts if PACKAGE.joinpath(*parts).with_suffix(".py").is_file() else None


def imports_of(file: Path) -> Iterator[tuple[str, ...]]:
    """The modules of the package that a file imports, wherever in the file it does."""
    own = module_of(file)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found = [tuple(name[1:]) for name in names if name[0] == PACKAGE.name]
        elif isinstance(node, ast.ImportFrom):
            named = node.module.split(".") if node.module else []
            if node.level:
                base = (*own[: len(own) - node.level], *named)
            elif named[:1] == [PACKAGE.name]:
                base = tuple(named[1:])
            else:
                continue
            found = [(*base, alias.name) if module_at((*base, alias.name)) else base for alias in node.names]
        else:
            continue
        for parts in found:
            module = module_at(parts)
            assert module, f"{file} imports {'.'.join(parts)!r}, which is no module"
            yield module


def graph() -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    return {module_of(file): set(imports_of(file)) for file in files()}


def test_every_file_has_a_room() -> None:
    assert {module_of(file)[0] for file in files()} == set(ROOMS)


@pytest.mark.parametrize("file", files(), ids=lambda file: "/".join(module_of(file)))
def test_arrows_point_at_rooms_that_come_before(file: Path) -> None:
    room = module_of(file)[0]
    for target in imports_of(file):
        assert target[0] == room or ROOMS.index(target[0]) < ROOMS.index(room), f"{file} imports {'.'.join(target)}"


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {module: targets - {module} for module, targets in graph().items()}
    graphlib.TopologicalSorter(arrows).prepare()
