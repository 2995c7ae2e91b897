"""Python packages as texts, and the lines of their files that use what other files define."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from posixpath import dirname


# Stands before each file of a package
HEADER = "# Path: {path}\n"
# Characters of a line that is asked for: shorter ones say too little, longer ones are not written like this
SHORTEST, LONGEST = 20, 120

DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SIMPLE = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return, ast.Raise)


@dataclass(frozen=True)
class Use:
    """The first call of an imported name in a file, on a line of its own.

    Attributes:
        path (`str`): The file.
        line (`int`): The line in it, from 0.
        defined_in (`str`): The file that defines the name.
        code (`str`): The line, without its indentation.
    """

    path: str
    line: int
    defined_in: str
    code: str


def files_of(text: str) -> dict[str, str]:
    """The files of a text in which each stands behind its path (`HEADER`), by path; none, if it is no package."""
    parts = re.split(r"^# Path: (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2])) if not parts[0].strip() else {}


def file_text(path: str, code: str) -> str:
    """A file behind its path, as it stands in such a text."""
    return f"{HEADER.format(path=path)}{code.rstrip()}\n\n"


def uses_of(files: Mapping[str, str]) -> list[Use]:
    """All lines of a package that call a function or a class of another of its files for the first time."""
    trees = {path: tree for path, code in files.items() if (tree := _parsed(code)) is not None}
    definitions = {path: {n.name for n in tree.body if isinstance(n, DEFINITION)} for path, tree in trees.items()}
    return [
        Use(path, line, imported[name], lines[line].strip())
        for path, tree in trees.items()
        for imported in [_imported(path, tree, definitions)]
        for lines in [files[path].split("\n")]
        for name, line in _first_calls(tree, lines, imported)
    ]


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the code's own escapes
            return ast.parse(code)
    except (SyntaxError, ValueError):
        return None


def _imported(path: str, tree: ast.Module, definitions: Mapping[str, set[str]]) -> dict[str, str]:
    """The files that define what a file imports by name, by the name that it has there."""
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom):
            continue
        folder = path
        for _ in range(node.level):
            folder = dirname(folder)
        module = "/".join(filter(None, [folder if node.level else "", *(node.module or "").split(".")]))
        for alias in node.names:
            for place in (f"{module}.py", f"{module}/__init__.py"):
                if place != path and alias.name in definitions.get(place, ()):
                    found[alias.asname or alias.name] = place
    return found


def _first_calls(tree: ast.Module, lines: list[str], imported: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Names and lines, where the first use of a name is a call in a statement of one line."""
    first: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in imported:
            first[node.id] = min(node.lineno, first.get(node.id, node.lineno))
    for node in ast.walk(tree):
        if not isinstance(node, SIMPLE) or node.lineno != node.end_lineno:
            continue
        line = lines[node.lineno - 1]
        whole = node.col_offset == len(line) - len(line.lstrip()) and node.end_col_offset == len(line.encode())
        calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
        called = {name.id for name in calls if isinstance(name, ast.Name)}
        if whole and SHORTEST <= len(line.strip()) <= LONGEST:
            for name in sorted(called & imported.keys()):
                if first[name] == node.lineno:
                    yield name, node.lineno - 1
