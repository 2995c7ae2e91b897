"""What the subcommands share: exit codes, and errors as sentences."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


# What the exit codes mean; 2 is also what argparse ends with
UNEXPECTED, USAGE, DOCUMENT, LOADING, SAVING, INTERRUPTED = 1, 2, 3, 4, 5, 130


class CommandError(Exception):
    """Ends the command with one sentence on stderr and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def failing_as(code: int, what: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """Turn an error into a `CommandError` that says what failed."""
    try:
        yield
    except kind as error:
        raise CommandError(f"{what}: {first_line(error)}", code) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message; many libraries put a whole page there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def say(message: str) -> None:
    """Print a message to stderr; stdout is for results."""
    print(f"focus-peft: {message}", file=sys.stderr, flush=True)


def add_command(commands: Any, name: str, help: str, **texts: str) -> argparse.ArgumentParser:
    """Add a subcommand whose description and epilog keep their lines."""
    command = commands.add_parser(name, help=help, formatter_class=argparse.RawDescriptionHelpFormatter, **texts)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command
