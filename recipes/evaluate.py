"""Evaluate an adapter, and baselines beside it, as a configuration says.

    python recipes/evaluate.py --config recipes/evaluations/smollm2.yaml
    python recipes/evaluate.py --config recipes/evaluations/smollm2.yaml --tasks passkey --lengths 4K,16K --limit 5
    python recipes/evaluate.py --config recipes/evaluations/smollm2.yaml adapter=my/adapter tasks.passkey.samples=50

A configuration is a YAML file with the fields of `Evaluation` (recipes/evaluating/configuration.py); `key=value`
overrides it. Every sample goes to `samples.jsonl` in a folder that is named by a digest of the configuration, the
weights of model and adapter, and the texts: the same command goes on where it was interrupted, and nothing is ever
mixed with samples of something else. `--tasks`, `--methods`, `--lengths`, `--limit` and `--max-minutes` run a part of
the same evaluation. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import transformers
from evaluating.configuration import Evaluation, chosen
from evaluating.evaluator import Evaluator
from evaluating.jobs import Job
from lib.command_line import command_of, parser_of, positive, sentences


def prepare(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[Evaluator, list[Job]]:
    """Load everything, and choose what is run.

    Raises:
        ValueError: for a configuration or options that cannot be.
    """
    evaluation = Evaluation.load(args.config, overrides)
    tasks = chosen("tasks", args.tasks, list(evaluation.tasks))
    methods = chosen("methods", args.methods, list(evaluation.methods))
    every = {length for task in evaluation.tasks.values() for length in task.lengths or []}
    lengths = chosen("lengths", args.lengths, sorted(every, key=lambda length: (length is None, length)))
    if evaluation.adapter is None:
        print("warning: no `adapter`, so the twins are untrained.", file=sys.stderr)
    command = command_of("evaluate.py", ["--config", args.config, *overrides])
    evaluator = Evaluator(evaluation, Path(args.config).stem, command)
    jobs = [job for job in evaluator.jobs() if job.task in tasks and job.length in lengths]
    return evaluator, [replace(job, methods=tuple(m for m in job.methods if m in methods)) for job in jobs]


def main(args: argparse.Namespace, overrides: Sequence[str]) -> bool:
    """Returns whether everything that was asked for is there."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
    try:
        evaluator, jobs = prepare(args, overrides)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(evaluator.folder, flush=True)
    kept = evaluator.evaluation.keep_chunks_gb
    with evaluator.model.keeping_chunks(kept) if kept else contextlib.nullcontext():
        done = evaluator.run(jobs, args.limit, None if args.max_minutes is None else 60 * args.max_minutes)
    print((evaluator.folder / "table.md").read_text(encoding="utf-8"))
    return done


def parse_args(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = parser_of(__doc__, config="the configuration")
    for name in ("tasks", "methods", "lengths"):
        parser.add_argument(f"--{name}", help=f"only these {name} of the configuration, separated by commas")
    parser.add_argument("--limit", type=positive, help="only so many samples of each task, method and length")
    parser.add_argument("--max-minutes", type=float, help="stop after the sample that is running then")
    return parser.parse_known_args(words)


if __name__ == "__main__":
    options, rest = parse_args()
    try:
        with sentences():
            if not main(options, rest):
                print("Stopped by --max-minutes; the same command goes on.", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        sys.exit(130)
