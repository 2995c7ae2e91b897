"""What the subcommands share: exit codes, and errors as sentences."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Collection, Iterator
from typing import Any


# What the exit codes mean; 2 is also what argparse ends with, and 141 what a program has that SIGPIPE killed
UNEXPECTED, USAGE, DOCUMENT, LOADING, SAVING, INTERRUPTED, NO_READER = 1, 2, 3, 4, 5, 130, 141


class CommandError(Exception):
    """Ends the command with one sentence on stderr and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
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


def naming_options(message: str, options: Collection[str]) -> str:
    """A message of the library, which names its arguments in backticks, with the options of a command instead."""

    def option(found: re.Match) -> str:
        name = {"repo_id": "repo"}.get(found[1], found[1])
        return f"--{name.replace('_', '-')}" if name in options else found[0]

    return re.sub(r"`([a-z_]+)(?:=True)?`", option, message)


def prepare_streams() -> None:
    """Make stderr and stdout such that nothing that is written to them fails for what it is."""
    if sys.stderr is None:  # it was closed before the process began
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  it stays open
    if sys.stdout is None:
        raise CommandError("stdout is closed, so there is nowhere to write to; redirect it to a file.", USAGE)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # in a locale that has fewer characters than an answer
            stream.reconfigure(errors="backslashreplace")


def forget_streams() -> None:
    """Write nothing more to a reader that went away, when the process ends either."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(message: str) -> None:
    """Print a message to stderr; stdout is for results."""
    with contextlib.suppress(BrokenPipeError):
        print(f"focus-peft: {message}", file=sys.stderr, flush=True)


def add_command(commands: Any, name: str, help: str, **texts: str) -> argparse.ArgumentParser:
    """Add a subcommand whose description and epilog keep their lines."""
    command = commands.add_parser(name, help=help, formatter_class=argparse.RawDescriptionHelpFormatter, **texts)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command
