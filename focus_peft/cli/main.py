"""The command `focus-peft`: its parser, and what a failure ends with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from .console import (
    INTERRUPTED,
    NO_READER,
    UNEXPECTED,
    CommandError,
    first_line,
    forget_streams,
    naming_options,
    prepare_streams,
    say,
)
from .generate import add_generate
from .publish import add_publish
from .serve import add_serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments. Defaults to those of the process.
    """
    try:
        return _run(argv)
    except KeyboardInterrupt:
        say("interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # such as `| head`
        forget_streams()
        return NO_READER


def _run(argv: Sequence[str] | None) -> int:
    try:
        prepare_streams()
        args = build_parser().parse_args(argv)
    except CommandError as error:
        say(f"error: {error}")
        return error.code
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # of what argparse printed, while a reader that went away is still noticed
    try:
        args.run(args)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        raise
    except Exception as error:
        if args.debug:
            raise
        say(f"error: {naming_options(first_line(error), vars(args))}")
        return error.code if isinstance(error, CommandError) else UNEXPECTED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="focus-peft", description="Long context for frozen language models.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    add_generate(commands)
    add_serve(commands)
    add_publish(commands)
    return parser
