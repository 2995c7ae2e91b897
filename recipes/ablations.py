"""Train a recipe several times with one thing changed each time, evaluate all alike, and put the results side by side.

    python recipes/ablations.py --config recipes/ablations/tiny_debug.yaml
    python recipes/ablations.py --config recipes/ablations/smollm2.yaml --dry-run
    python recipes/ablations.py --config recipes/ablations/smollm2_reading.yaml
    python recipes/ablations.py --config recipes/ablations/smollm2.yaml --studies "losses,chunk size" --limit 5
    python recipes/ablations.py --config recipes/ablations/llama2_7b_paper.yaml --launcher "accelerate launch"

A configuration is a YAML file with the fields of `Ablations` (recipes/ablation.py); `key=value` overrides it. Every variant is a run of
`train.py` and a run of `evaluate.py`; variants with the same `train` share one adapter. With `adapter` in place of `recipe` nothing is
trained, and the variants differ in how that adapter reads. What is trained or evaluated is not done again:
the same command goes on where it was interrupted. A variant that fails is noted, and the others go on. `--dry-run` says what would be
run, and how long the training would take; it leaves nothing behind. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablating.configuration import Ablations, Variant
from ablating.table import table
from evaluating.configuration import Evaluation, read_texts
from evaluating.jobs import jobs_of, record_facts
from evaluating.results import lock, write_text
from safetensors import safe_open

from focus_peft.hub.provenance import Provenance


HERE = Path(__file__).parent
# In the folder of a training that came to its end
TRAINED = "trained.json"


class Runner:
    """Runs variants, and writes what came out.

    Args:
        ablations (`Ablations`): What is run.
        launcher (`list[str]`): What starts `train.py`.
        command (`str`): What is run, for those who want to run it again.
        limit (`int`, *optional*): Of `evaluate.py`.
    """

    def __init__(self, ablations: Ablations, launcher: list[str], command: str, limit: int | None) -> None:
        self.ablations, self.launcher, self.command, self.limit = ablations, launcher, command, limit
        self.folder = Path(ablations.output_dir)
        self.failed: dict[str | None, subprocess.CalledProcessError] = {}  # trainings
        # what came out, by training and overrides of the evaluation
        self.ran: dict[tuple[str | None, str], dict[str, Any]] = {}

    def run(self, variants: list[Variant]) -> bool:
        """Train and evaluate. Returns whether nothing failed.

        Raises:
            BlockingIOError: if another process is at it.
            KeyboardInterrupt: if this one shall end; whatever was done is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as file:
            lock(file, self.folder)
            entries = self._known()
            for number, variant in enumerate(variants):
                print(f"[{number + 1} of {len(variants)}] {variant.study}: {variant.name}", flush=True)
                entries[variant.study, variant.name] = self._entry(variant)
                self._write(entries)
            self._write(entries)
        return not any("failed" in entries[variant.study, variant.name] for variant in variants)

    def _entry(self, variant: Variant) -> dict[str, Any]:
        same = variant.training, json.dumps(variant.evaluate)
        if same not in self.ran:  # every study has one that changes nothing
            self.ran[same] = self._outcome(variant)
        return {**head_of(variant), **self.ran[same]}

    def _outcome(self, variant: Variant) -> dict[str, Any]:
        try:
            adapter = self._trained(variant)
            fixed = {"adapter": str(adapter), "output_dir": str(self.folder / "evaluations")}
            rest = ["--config", self.ablations.evaluation, *self.ablations.evaluate_words(variant, **fixed)]
            options = [] if self.limit is None else ["--limit", str(self.limit)]
            output = run("evaluate.py", [*rest, *options])
        except subprocess.CalledProcessError as error:
            return {"failed": f"`{error.cmd}` ended with code {error.returncode}"}
        summary = json.loads((Path(output.splitlines()[0]) / "summary.json").read_text(encoding="utf-8"))
        return {
            "adapter": str(adapter),
            "parameters": parameters(adapter),
            "held_out": Provenance.of(adapter).evaluation(),
            "samples": output.splitlines()[0],
            "command": shown("evaluate.py", rest),
            **{name: summary[name] for name in ("results", "not_run", "origins", "versions", "machine")},
        }

    def _trained(self, variant: Variant) -> Path:
        """The folder of a variant's adapter, which is trained, or trained on, if it is not there."""
        if self.ablations.adapter is not None:
            return Path(self.ablations.adapter)
        adapter = self.trained_folder(variant)
        if (adapter / TRAINED).is_file():
            return adapter
        if variant.training in self.failed:
            raise self.failed[variant.training]
        rest = self.ablations.train_words(variant, f"output_dir={json.dumps(str(adapter))}")
        try:
            run("train.py", rest, self.launcher, captured=False)
        except subprocess.CalledProcessError as error:
            self.failed[variant.training] = error
            raise
        write_text(adapter / TRAINED, json.dumps({"command": shown("train.py", rest)}, indent=2) + "\n")
        return adapter

    def trained_folder(self, variant: Variant) -> Path:
        """Named after the first variant that is trained there."""
        found = sorted(self.folder.glob(f"training/*-{variant.training}"))
        readable = re.sub(r"\W+", "-", f"{variant.study} {variant.name}").strip("-")
        return found[0] if found else self.folder / "training" / f"{readable}-{variant.training}"

    def _known(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What earlier runs wrote of variants that are as they were."""
        file = self.folder / "results.json"
        old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if any(old.get(name) != value for name, value in self._common().items()):
            return {}
        heads = [json.loads(json.dumps(head_of(variant))) for variant in self.ablations.variants]
        return {
            (entry["study"], entry["variant"]): entry
            for entry in old["variants"]
            if {name: entry.get(name) for name in heads[0]} in heads
        }

    def _common(self) -> dict[str, Any]:
        """What all variants have in common."""
        names = ("recipe", "adapter", "evaluation", "train", "evaluate")
        return {name: getattr(self.ablations, name) for name in names}

    def _write(self, entries: dict[tuple[str, str], dict[str, Any]]) -> None:
        places = [(variant.study, variant.name) for variant in self.ablations.variants]
        ordered = [entries[place] for place in places if place in entries]
        results = {"command": self.command, **self._common(), "variants": ordered}
        write_text(self.folder / "results.json", json.dumps(results, indent=2) + "\n")
        write_text(self.folder / "table.md", f"`{self.command}`\n\n" + table(ordered))


def head_of(variant: Variant) -> dict[str, Any]:
    """What a variant is, for JSON."""
    own: dict[str, Any] = {"study": variant.study, "variant": variant.name, "training": variant.training}
    return {**own, "train": variant.train, "evaluate": variant.evaluate}


def parameters(adapter: Path) -> int:
    """Numbers in the file of an adapter."""
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


class Terminated(KeyboardInterrupt):
    """By a signal that the processes we started did not get."""


def shown(script: str, rest: Sequence[str]) -> str:
    """A command for readers."""
    return shlex.join(["python", f"recipes/{script}", *rest])


def run(script: str, rest: Sequence[str], launcher: Sequence[str] = (sys.executable,), captured: bool = True) -> str:
    """Run a recipe and return what it printed, if that is captured. When this process shall end, the recipe ends in its own time.

    Raises:
        subprocess.CalledProcessError: if it failed.
        KeyboardInterrupt: if it was interrupted.
    """
    with subprocess.Popen(
        [*launcher, str(HERE / script), *rest], stdout=subprocess.PIPE if captured else None, text=True
    ) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt as stop:
            if isinstance(stop, Terminated):
                process.send_signal(signal.SIGINT)
            while process.poll() is None:  # it saves a checkpoint first
                with contextlib.suppress(KeyboardInterrupt):
                    process.wait()
            raise
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, shown(script, rest))
    return output or ""


def dry_run(runner: Runner, variants: list[Variant]) -> None:
    """Print what would be run; what was trained already is not measured."""
    hours, seen = 0.0, set()
    for variant in variants:
        if (
            variant.training is None
            or variant.training in seen
            or (runner.trained_folder(variant) / TRAINED).is_file()
        ):
            continue
        seen.add(variant.training)
        said = run("train.py", ["--dry-run", *runner.ablations.train_words(variant)])
        lines = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        print(f"training {variant.study}, {variant.name}: {lines['time'].strip()}", flush=True)
        measured = re.search(r"([\d.]+) s a step", lines["time"]), re.search(r"([\d,]+) of", lines["steps"])
        if measured[0] and measured[1]:
            hours += float(measured[0][1]) * int(measured[1][1].replace(",", "")) / 3600
    print(f"{len(seen)} trainings: {hours:.2f} h in all here, without evaluation")
    samples = tokens = 0
    for variant in variants:
        evaluation = Evaluation.load(runner.ablations.evaluation, runner.ablations.evaluate_words(variant))
        facts = record_facts(evaluation)
        for job in jobs_of(evaluation, evaluation.methods):
            count = min(job.samples, runner.limit or job.samples) * len(job.methods)
            samples += count
            tokens += count * job.tokens(facts)
    print(f"{len(variants)} evaluations: {samples:,} samples of {tokens:,} tokens in all")


def main(args: argparse.Namespace, overrides: Sequence[str]) -> bool:
    """Returns whether nothing failed."""
    try:
        ablations = Ablations.load(args.config, overrides)
        known = [str(study) for study in ablations.studies]
        names = known if args.studies is None else [name.strip() for name in args.studies.split(",")]
        for name in names:
            if name not in known:
                there = ", ".join(known)
                raise ValueError(f"`--studies` names {name!r}, but the configuration has {there}; choose among these.")
        variants = [variant for variant in ablations.variants if variant.study in names]
        read: list[Any] = []
        for variant in variants:
            evaluation = Evaluation.load(ablations.evaluation, ablations.evaluate_words(variant))
            needs = evaluation.texts, evaluation.data, list(evaluation.tasks)
            if needs not in read:  # texts and records may come from the Hub
                read_texts(evaluation.texts)
                record_facts(evaluation)
                read.append(needs)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    command = shlex.join(["python", "recipes/ablations.py", "--config", args.config, *overrides])
    launcher = [sys.executable] if args.launcher is None else shlex.split(args.launcher)
    runner = Runner(ablations, launcher, command, args.limit)
    if args.dry_run:
        dry_run(runner, variants)
        return True
    done = runner.run(variants)
    print((runner.folder / "table.md").read_text(encoding="utf-8"))
    return done


def parse_args(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the configuration, a YAML file")
    parser.add_argument("--studies", help="only these studies of the configuration, separated by commas")
    parser.add_argument("--limit", type=positive, help="evaluate only so many samples of each task, method and length")
    parser.add_argument("--launcher", help="what starts a training, such as 'accelerate launch' (default: python)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be run and how long training would take"
    )
    return parser.parse_known_args(words)


def positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an integer above 0, got {text}")
    return int(text)


def _terminated(*_: Any) -> None:
    raise Terminated


if __name__ == "__main__":
    # a shell without job control has what it starts in the background ignore Ctrl-C, and recipes would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if not main(*parse_args()):
            sys.exit("error: some variants failed; the table says which.")
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except BlockingIOError as error:
        sys.exit(f"error: {error}")
