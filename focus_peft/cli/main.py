"""The command `focus-peft`: its parser, and what a failure ends with."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from .console import (
    INTERRUPTED,
    UNEXPECTED,
    CommandError,
    _say,
    _sentence,
)
from .generate import run_generate


EXIT_CODES = """\
exit codes:
  0    every question was answered
  1    unexpected failure (see --debug)
  2    wrong usage
  3    the document cannot be read, is empty or is not text
  4    the model, the adapter or the memory cannot be loaded, or not with these sizes
  5    the memory cannot be saved
  130  interrupted with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments) and return its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        args.run(args)
        return 0
    except KeyboardInterrupt:
        _say("interrupted.")
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            raise
        _say(f"error: {_sentence(error)}")
        return error.code if isinstance(error, CommandError) else UNEXPECTED


def build_parser() -> argparse.ArgumentParser:
    from .publish import add_publish

    parser = argparse.ArgumentParser(prog="focus-peft", description="Long context for frozen language models.")
    commands = parser.add_subparsers(required=True, metavar="command")
    generate = commands.add_parser(
        "generate",
        help="answer questions about a text file or stdin",
        description="Reads a document once, of any length, and answers questions about it. Answers go to stdout, everything "
        "else to stderr.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generate.set_defaults(run=run_generate)
    add = generate.add_argument
    add("--model", required=True, help="a model's directory or its name on the Hub")
    add("--gguf-file", metavar="NAME", help="the GGUF file inside --model to load the model from")
    add("--adapter", help="a trained adapter's directory or its name on the Hub (default: untrained twins)")
    add("--document", metavar="FILE", help="the text to ask about (UTF-8), or - for stdin")
    add("--question", action="append", required=True, help="may be given several times; the document is read once")
    add(
        "--memory",
        metavar="DIR",
        help="with --document: save the encoded document here; without: use the one saved here",
    )
    add("--max-new-tokens", type=_positive(int), default=256, metavar="N", help="longest answer (default: 256)")
    add("--temperature", type=_positive(float), metavar="T", help="sample at this temperature (default: no sampling)")
    add("--top-p", type=_positive(float), metavar="P", help="sample from the most likely tokens that make up P")
    add("--seed", type=int, help="makes sampling repeatable")
    add("--decoding", choices=("streaming", "exact"), help="default: what the adapter's configuration says")
    for name, text in (("chunk", "chunk of the document"), ("local", "local window"), ("prompt", "dynamic prompt")):
        add(f"--{name}-size", type=_positive(int), metavar="N", help=f"tokens in a {text} (default: the adapter's)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: the model's own")
    add("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one)")
    add("--debug", action="store_true", help="show the traceback of an error")
    add_publish(commands)
    return parser


def _positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse
