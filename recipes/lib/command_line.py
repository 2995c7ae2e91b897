"""What the scripts' command lines have in common."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence


def parser_of(description: str | None, config: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring. `config` says what `--config` names, if there is one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if config is not None:
        parser.add_argument("--config", required=True, help=f"{config}, a YAML file; key=value overrides it")
    return parser


def positive(text: str) -> int:
    """An integer above 0."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an integer above 0, got {text}")
    return int(text)


def command_of(script: str, words: Sequence[str]) -> str:
    """The command that runs a script, for readers."""
    return shlex.join(["python", f"recipes/{script}", *words])
