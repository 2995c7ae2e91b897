"""Runs variants: each is a run of `train.py` and a run of `evaluate.py`, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluating.sample_file import lock
from lib.command_line import command_of
from lib.result_files import write_json, write_markdown
from safetensors import safe_open

from ablating.configuration import Ablations, Variant, words
from ablating.tables import tables
from focus_peft.hub.provenance import Provenance


HERE = Path(__file__).parents[1]
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
            fixed = words({"adapter": str(adapter), "output_dir": str(self.folder / "evaluations")})
            rest = ["--config", self.ablations.evaluation, *variant.evaluate_words, *fixed]
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
            "command": command_of("evaluate.py", rest),
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
        fixed = words({"output_dir": str(adapter)})
        rest = ["--config", str(self.ablations.recipe), *variant.train_words, *fixed]
        try:
            run("train.py", rest, self.launcher, captured=False)
        except subprocess.CalledProcessError as error:
            self.failed[variant.training] = error
            raise
        write_json(adapter / TRAINED, {"command": command_of("train.py", rest)})
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
        write_json(self.folder / "results.json", results)
        write_markdown(self.folder / "table.md", self.command, tables(ordered))


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


def run(script: str, rest: Sequence[str], launcher: Sequence[str] = (sys.executable,), captured: bool = True) -> str:
    """Run a recipe and return what it printed, if that is captured. When this process shall end, the recipe ends in
    its own time.

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
    if process.returncode in (130, 143):  # a signal that it got by itself
        raise KeyboardInterrupt
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command_of(script, rest))
    return output or ""
