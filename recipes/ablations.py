"""Train a recipe several times with one thing changed each time, evaluate all alike, and put the results side by side.

    python recipes/ablations.py --config recipes/ablations/tiny_debug.yaml
    python recipes/ablations.py --config recipes/ablations/smollm2.yaml --dry-run
    python recipes/ablations.py --config recipes/ablations/smollm2_reading.yaml
    python recipes/ablations.py --config recipes/ablations/smollm2.yaml --studies "losses,chunk size" --limit 5
    python recipes/ablations.py --config recipes/ablations/llama2_7b_paper.yaml --launcher "accelerate launch"

A configuration is a YAML file with the fields of `Ablations` (recipes/ablating/configuration.py); `key=value`
overrides it. Every variant is a run of `train.py` and a run of `evaluate.py`; variants with the same `train` share one
adapter. With `adapter` in place of `recipe` nothing is trained, and the variants differ in how that adapter reads.
What is trained or evaluated is not done again: the same command goes on where it was interrupted. A variant that fails
is noted, and the others go on. `--dry-run` says what would be run, and how long the training would take; it leaves
nothing behind. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ablating.configuration import Ablations, Variant
from ablating.runner import TRAINED, Runner, Terminated, run
from evaluating.jobs import jobs_of, record_facts
from evaluating.texts import read_texts
from lib.command_line import command_of, listed, parser_of, positive, sentences
from lib.yaml_files import check_names


def dry_run(runner: Runner, variants: list[Variant]) -> None:
    """Print what would be run; what was trained already is not measured."""
    hours = 0.0
    seen: set[str | None] = set()
    for variant in variants:
        if (
            variant.training is None
            or variant.training in seen
            or (runner.trained_folder(variant) / TRAINED).is_file()
        ):
            continue
        seen.add(variant.training)
        said = run("train.py", ["--dry-run", "--config", str(runner.ablations.recipe), *variant.train_words])
        lines = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        print(f"training {variant.study}, {variant.name}: {lines['time'].strip()}", flush=True)
        measured = re.search(r"([\d.]+) s a step", lines["time"]), re.search(r"([\d,]+) of", lines.get("steps", ""))
        if measured[0] and measured[1]:
            hours += float(measured[0][1]) * int(measured[1][1].replace(",", "")) / 3600
    print(f"{len(seen)} trainings: {hours:.2f} h in all here, without evaluation")
    samples = tokens = 0
    for variant in variants:
        facts = record_facts(variant.evaluation)
        for job in jobs_of(variant.evaluation, variant.evaluation.methods):
            count = min(job.samples, runner.limit or job.samples) * len(job.methods)
            samples += count
            tokens += count * job.tokens(facts)
    print(f"{len(variants)} evaluations: {samples:,} samples of {tokens:,} tokens in all")


def chosen_variants(ablations: Ablations, studies: str | None) -> list[Variant]:
    """The variants of some studies, whose texts and records were found.

    Raises:
        ValueError: for a study that there is not, or texts or records that cannot be read.
    """
    known = [str(study) for study in ablations.studies]
    names = known if studies is None else listed(studies)
    check_names("`--studies`", names, known)
    variants = [variant for variant in ablations.variants if variant.study in names]
    read: list[Any] = []
    for variant in variants:
        evaluation = variant.evaluation
        needs = evaluation.texts, evaluation.data, list(evaluation.tasks)
        if needs not in read:  # texts and records may come from the Hub
            read_texts(evaluation.texts)
            record_facts(evaluation)
            read.append(needs)
    return variants


def main(args: argparse.Namespace, overrides: Sequence[str]) -> bool:
    """Returns whether nothing failed."""
    try:
        ablations = Ablations.load(args.config, overrides)
        variants = chosen_variants(ablations, args.studies)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    command = command_of("ablations.py", ["--config", args.config, *overrides])
    launcher = [sys.executable] if args.launcher is None else shlex.split(args.launcher)
    if not launcher or shutil.which(launcher[0]) is None:
        raise ValueError(f"`--launcher` is {args.launcher!r}, which starts with no program; name one, or its path.")
    runner = Runner(ablations, launcher, command, args.limit)
    if args.dry_run:
        dry_run(runner, variants)
        return True
    done = runner.run(variants)
    print((runner.folder / "table.md").read_text(encoding="utf-8"))
    return done


def parse_args(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = parser_of(__doc__, config="the configuration")
    parser.add_argument("--studies", help="only these studies of the configuration, separated by commas")
    parser.add_argument("--limit", type=positive, help="evaluate only so many samples of each task, method and length")
    parser.add_argument("--launcher", help="what starts a training, such as 'accelerate launch' (default: python)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be run and how long training would take"
    )
    return parser.parse_known_args(words)


def _terminated(*_: Any) -> None:
    raise Terminated


if __name__ == "__main__":
    # a shell without job control has what it starts in the background ignore Ctrl-C, and recipes would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        with sentences():
            if not main(*parse_args()):
                sys.exit("error: some variants failed; the table says which.")
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        sys.exit(130)
