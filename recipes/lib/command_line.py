"""What the scripts' command lines have in common."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence


def parser_of(description: str | None, config: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring. `config` says what `--config` names, if there is one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if config is not None:
        parser.add_argument("--config", required=True, help=f"{config}, a YAML file; key=value overrides it")
    return parser


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Within the context, what a user can mend, a ValueError or an OSError, ends the script with its sentence and code
    1. `python -X dev` shows where it was raised.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            sys.exit(f"error: {error.filename!r}: {error.strerror}.")
        sys.exit(f"error: {error}")


def listed(text: str) -> list[str]:
    """The words of an option that takes several, with commas between them; blanks do not count."""
    return [word.strip() for word in text.split(",")]


def positive(text: str) -> int:
    """An integer above 0."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an integer above 0, got {text}")
    return int(text)


def command_of(script: str, words: Sequence[str]) -> str:
    """The command that runs a script, for readers."""
    return shlex.join(["python", f"recipes/{script}", *words])
