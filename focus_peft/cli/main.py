"""The command `focus-peft`: its parser, and what a failure ends with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import __version__
from .console import INTERRUPTED, UNEXPECTED, CommandError, first_line, say
from .generate import add_generate
from .publish import add_publish
from .serve import add_serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments. Defaults to those of the process.
    """
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
        return 0
    except KeyboardInterrupt:
        say("interrupted.")
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            raise
        say(f"error: {first_line(error)}")
        return error.code if isinstance(error, CommandError) else UNEXPECTED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="focus-peft", description="Long context for frozen language models.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    add_generate(commands)
    add_serve(commands)
    add_publish(commands)
    return parser
