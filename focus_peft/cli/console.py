"""What the subcommands share: exit codes, and errors as sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


# What the exit codes mean; 2 is also what argparse ends with
UNEXPECTED, USAGE, DOCUMENT, LOADING, SAVING, INTERRUPTED = 1, 2, 3, 4, 5, 130


class CommandError(Exception):
    """Ends the command with one sentence on stderr and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def _failing_as(code: int, what: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """Turn an error into a `CommandError` that says what failed."""
    try:
        yield
    except kind as error:
        raise CommandError(f"{what}: {_sentence(error)}", code) from error


def _sentence(error: Exception) -> str:
    """The first line of an error's message; many libraries put a whole page there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _say(message: str) -> None:
    print(f"focus-peft: {message}", file=sys.stderr, flush=True)
