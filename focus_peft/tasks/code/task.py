"""Code across files: write the next line of a file, which is the first to call what another file of its package
defines, thousands of tokens earlier.

The form is that of RepoBench's cross-file-first lines (Liu et al., arXiv 2306.03091) and LCC: files one after another,
each behind its path, and the file that is to go on last; exact match and edit similarity of the next line. Packages
are those of `Source.texts`, each a text as `recipes/source_texts.py` writes it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from operator import itemgetter
from random import Random

from ..samples import Draft, Request
from ..task import FilledTask
from .uses import HEADER, Use, file_text, files_of, uses_of


# The deepest definition stands behind so large a part of the other files: the rest of them always comes between
DEEPEST = 0.5
# Characters for each token of the prompt that a file may have up to the line, or as the one that defines
IN_FRONT, DEFINING = 1, 1.5


@dataclass(frozen=True)
class CrossFileLine(FilledTask):
    """The next line of a file, with the file that defines what it calls among those before it."""

    name: str = "cross_file_line"
    new_tokens: int = 64
    is_binary: bool = False

    def draft(self, request: Request, units: int) -> Draft:
        """A prompt with so many lines of other files."""
        packages, uses = usable(tuple(request.source.texts), request.tokens)
        generator = request.random(self.name)
        number, use = generator.choice(uses)
        files = packages[number]
        others = _others([files, *packages[:number], *packages[number + 1 :]], use, generator)
        between = list(islice(others, units))
        if len(between) < units:
            raise ValueError(
                f"`texts` has too few files to fill {request.tokens:,} tokens around a line of one of them; give more "
                "packages, or a shorter length."
            )
        before = round(units * DEEPEST * request.depth)
        front = _joined(between[:before])
        text = front + file_text(use.defined_in, files[use.defined_in]) + _joined(between[before:])
        text += HEADER.format(path=use.path) + _front(files, use) + "\n"
        return Draft(text, "", (use.code,), round(len(front) / len(text), 3), chat=False)

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """The edit similarity of the first line of code."""
        return difflib.SequenceMatcher(None, first_line(prediction), references[0]).ratio()

    def is_exact(self, prediction: str, references: Sequence[str]) -> bool:
        """Whether the first line of code is the reference, but for spaces."""
        return first_line(prediction).split() == references[0].split()


def first_line(prediction: str) -> str:
    """The first that is not empty and no comment, as RepoBench has it; the first, if all are comments."""
    lines = [line.strip() for line in prediction.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("#")), next(iter(lines), ""))


@lru_cache(maxsize=8)
def usable(texts: tuple[str, ...], tokens: int) -> tuple[list[dict[str, str]], list[tuple[int, Use]]]:
    """The packages among some texts, and the lines of them that a prompt of so many tokens can ask for, each with the
    number of its package. Lines that several files have, such as those that make a logger, need no definition.

    Raises:
        ValueError: if there is none.
    """
    packages = [files for files in map(files_of, texts) if files]
    uses = [(number, use) for number, files in enumerate(packages) for use in uses_of(files)]
    often = Counter(use.code for _, use in uses)
    found = [
        (number, use) for number, use in uses if often[use.code] == 1 and _is_usable(packages[number], use, tokens)
    ]
    if not found:
        raise ValueError(
            "`texts` has no Python package in which a file calls what another one defines, within this length; make "
            "some with recipes/source_texts.py."
        )
    return packages, found


def _front(files: Mapping[str, str], use: Use) -> str:
    """What stands before the line in its file."""
    return "\n".join(files[use.path].split("\n")[: use.line])


def _is_usable(files: Mapping[str, str], use: Use, tokens: int) -> bool:
    """Whether the files fit, and do not tell the answer."""
    front, defining = _front(files, use), files[use.defined_in]
    fits = len(front) <= IN_FRONT * tokens and len(defining) <= DEFINING * tokens
    return fits and use.code not in front and use.code not in defining


def _others(packages: Sequence[Mapping[str, str]], use: Use, generator: Random) -> Iterator[tuple[str, str]]:
    """The lines of all other files that do not tell the answer, each with its path: those of the first package first,
    its files in random order.
    """
    for number, files in enumerate(packages):
        paths = [path for path in files if number or path not in (use.path, use.defined_in)]
        for path in generator.sample(paths, len(paths)):
            if use.code not in files[path]:
                yield from ((path, line) for line in f"{files[path].rstrip()}\n\n".splitlines(keepends=True))


def _joined(lines: Sequence[tuple[str, str]]) -> str:
    """Lines, with the path of each file before its first."""
    return "".join(
        HEADER.format(path=path) + "".join(line for _, line in own) for path, own in groupby(lines, key=itemgetter(0))
    )
