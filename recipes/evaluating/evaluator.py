"""An evaluation with everything loaded, which runs samples and writes them down."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lib.base_model import load_model
from lib.result_files import git_commit, write_json, write_markdown
from peft import PeftConfig, PeftModel, get_peft_model
from tqdm import tqdm

from evaluating import origins
from evaluating.averages import averages, ruler_averages
from evaluating.configuration import KEY_TOKENS, LONGEST, LONGPPL, TEXT_TASKS, Evaluation
from evaluating.jobs import Job, jobs_of, prompts, record_facts, scored, spread_order
from evaluating.key_tokens import KeyTokenFinder
from evaluating.means import summarize
from evaluating.published_results import publishable
from evaluating.result_tables import tables
from evaluating.sample_file import SampleFile
from evaluating.texts import read_texts
from focus_peft import FocusConfig
from focus_peft.config import SHARED_FIELDS
from focus_peft.frozen.fingerprint import digest
from focus_peft.hub.results import save_results
from focus_peft.passes.settings import Settings
from focus_peft.tasks import LongPerplexityTask, Method, Source, method_named


class Evaluator:
    """An evaluation with everything loaded.

    Args:
        evaluation (`Evaluation`): What is run.
        name (`str`): The folder's name starts with it.
        command (`str`): What is run, for those who want to run it again.
    """

    def __init__(self, evaluation: Evaluation, name: str, command: str) -> None:
        self.evaluation, self.command = evaluation, command
        self.records = record_facts(evaluation)
        self.texts = read_texts(evaluation.texts)
        self.words = [] if evaluation.words is None else "\n".join(read_texts([evaluation.words])).split()
        self.model, self.tokenizer = load(evaluation)
        self.methods: dict[str, Method] = {}
        for label, options in evaluation.methods.items():
            options = {name: value for name, value in options.items() if name != LONGEST}
            make = method_named(options.pop("method", label))
            try:
                self.methods[label] = make(self.model, **options)
            except TypeError as error:  # an option that it does not have
                raise ValueError(f"`methods.{label}` cannot be: {str(error).rstrip('.')}.") from error
        self.source = Source(self.tokenizer, evaluation.seed, self.texts, self.words, evaluation.chat, evaluation.data)
        self.keys: KeyTokenFinder | None = None
        if LONGPPL in evaluation.tasks:
            thresholds = {key: getattr(evaluation.tasks[LONGPPL], key) for key in KEY_TOKENS}
            self.keys = KeyTokenFinder(self.model.get_base_model(), evaluation.evaluator, **thresholds)
        self.identity = self._identity()
        number = digest(json.dumps(self.identity, sort_keys=True).encode())[:12]
        self.folder = Path(evaluation.output_dir) / f"{name}-{number}"
        self.skipped: dict[tuple, dict[str, Any]] = {}

    def _identity(self) -> dict[str, Any]:
        """Everything that samples depend on, the code left out."""
        settings = self.evaluation.identity()
        if self.keys is not None and self.keys.tokenizer is not None:
            settings["evaluator"].update(self.keys.identity)
        records = {"records_digests": {name: facts.digest for name, facts in self.records.items()}}
        return {
            **settings,
            **(records if self.records else {}),
            "windows": _windows(self.model.base_model.settings()),
            "base_model": self.model.base_model.fingerprint.to_dict(),
            "twins": None if self.evaluation.adapter is None else digest_of_twins(self.model),
            "texts_digests": [digest(text.encode()) for text in self.texts],
            "words_digest": digest("\n".join(self.words).encode()),
        }

    def jobs(self) -> list[Job]:
        """All tasks at all lengths."""
        return jobs_of(self.evaluation, self.methods)

    @cached_property
    def documents(self) -> list[list[int]]:
        """The texts in tokens."""
        if not self.texts:
            return []
        return [list(ids) for ids in self.tokenizer(self.texts, verbose=False, add_special_tokens=False)["input_ids"]]

    def run(self, jobs: list[Job], limit: int | None, seconds: float | None) -> bool:
        """Run what is not there yet. Returns whether everything is there now.

        Raises:
            ValueError: if a method of these jobs lacks something; then nothing was run.
        """
        end = float("inf") if seconds is None else time.monotonic() + seconds
        write_json(self.folder / "config.json", self.identity)
        with closing(SampleFile(self.folder / "samples.jsonl")) as samples:
            todo = self._todo(jobs, limit, samples)
            self._load({label for _, _, missing in todo for label in missing})
            try:
                return self._run(todo, samples, end)
            finally:
                self.write_summary(samples)

    def _todo(self, jobs: list[Job], limit: int | None, samples: SampleFile) -> list[tuple[Job, int, list[str]]]:
        """(job, number, methods) of all samples that are not there yet."""
        todo = []
        for job in jobs:
            labels = [label for label in job.methods if self._can_read(label, job)]
            for number in spread_order(job.samples)[:limit]:
                missing = [m for m in labels if (job.task, m, job.length, number) not in samples.samples]
                todo += [(job, number, missing)] if missing else []
        return todo

    def _run(self, todo: list[tuple[Job, int, list[str]]], samples: SampleFile, end: float) -> bool:
        origin = {"commit": git_commit(), "versions": origins.versions()}
        total = sum(job.tokens(self.records) * len(missing) for job, _, missing in todo)
        interval = 0.5 if sys.stderr.isatty() else 60
        with tqdm(total=total, unit="tok", unit_scale=True, mininterval=interval, smoothing=0.05) as bar:
            for place, (job, number, labels) in enumerate(todo):
                bar.set_description(str(job), refresh=False)
                for sample in self.sample(job, number, labels):
                    samples.add({**sample, **origin})
                    bar.update(job.tokens(self.records))
                    left = place + 1 < len(todo) or sample["method"] != labels[-1]
                    if left and time.monotonic() > end:
                        return False
                if place + 1 < len(todo) and todo[place + 1][0] is not job:
                    self.write_summary(samples)
        return True

    def _load(self, labels: set[str]) -> None:
        """What is missing must not end an evaluation after hours."""
        for label in sorted(labels):
            try:
                self.methods[label].load()
            except ValueError as error:
                raise ValueError(f"`methods.{label}` cannot be: {error}") from error

    def _can_read(self, label: str, job: Job) -> bool:
        longest = self.evaluation.methods[label].get(LONGEST)
        reason = job.refusal(self.methods[label])
        if longest is not None and (job.length or 0) > longest:
            reason = f"It is read up to {longest:,} tokens here (`longest`)."
        if reason is None and job.task == LONGPPL and self.keys is not None:
            reason = self.keys.refusal(job.length or 0)
        if reason is not None:
            self._skip(job, label, reason)
        return reason is None

    def _skip(self, job: Job, label: str, reason: str) -> None:
        entry = {"task": job.task, "method": label, "length": job.length, "reason": reason}
        self.skipped[job.task, label, job.length] = entry

    def sample(self, job: Job, number: int, labels: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Run one sample with several methods."""
        methods = {label: self.methods[label] for label in labels}
        try:
            made = prompts(job, number, self.source, self.documents if job.task in TEXT_TASKS else [], methods)
            keys = self._key_tokens(job, number)
        except ValueError as error:  # what is too short for a task must not end all others
            for label in labels:
                self._skip(job, label, str(error))
            return
        for label, sample in made.items():
            begin = time.perf_counter()
            result = scored(job, methods[label], sample, self.source, keys)
            entry = {
                "task": job.task,
                "method": label,
                "length": job.length,
                "number": number,
                "depth": sample.depth,
                "input_tokens": len(sample.ids),
                **result,
                "seconds": round(time.perf_counter() - begin, 3),
            }
            yield {**entry, "cut": sample.cut} if job.task in self.records else entry

    def _key_tokens(self, job: Job, number: int) -> list[int] | None:
        """Places of the tokens of a text that are scored; None: all labels."""
        task = job.text_task(self.evaluation.seed) if job.task == LONGPPL else None
        if self.keys is None or not isinstance(task, LongPerplexityTask):
            return None
        return self.keys(task, number, self.documents, self.texts, self.tokenizer)

    def write_summary(self, samples: SampleFile) -> None:
        """Write `summary.json`, `table.md` and `results.json` of all samples in the folder."""
        everything = samples.samples.values()
        planned = {(job.task, label, job.length): job.samples for job in self.jobs() for label in job.methods}
        # a sample of an earlier run tells that it could be made
        skipped = [entry for key, entry in self.skipped.items() if not any(k[:3] == key for k in samples.samples)]
        results = summarize(everything, planned)
        means = [*averages(results), *ruler_averages(results)]
        summary = {
            "results": results,
            "not_run": skipped,
            "configuration": self.identity,
            "origins": origins.origins(everything),
            **origins.circumstances(self.model.device),
            "seconds": round(sum(sample["seconds"] for sample in everything), 1),
            **({"averages": means} if means else {}),
        }
        write_json(self.folder / "summary.json", summary)
        write_markdown(self.folder / "table.md", self.command, tables(results, skipped))
        save_results(publishable(results, self.command, self.evaluation), self.folder / "results.json")


def load(evaluation: Evaluation) -> tuple[Any, Any]:
    """(model with its adapter, tokenizer)."""
    base, tokenizer = load_model(evaluation.model)
    if torch.cuda.is_available() and not evaluation.model.load_in_4bit:
        base.to("cuda")
    if evaluation.adapter is None:
        # the same function as full twins, before training, at a small part of their size
        return get_peft_model(base, FocusConfig(**{"r": 1, **evaluation.focus})).eval(), tokenizer
    config: Any = PeftConfig.from_pretrained(evaluation.adapter)
    config = config.with_overrides(**evaluation.focus)
    return PeftModel.from_pretrained(base, evaluation.adapter, config=config).eval(), tokenizer


def digest_of_twins(model: Any) -> str:
    """Of all weights of the adapter."""
    found = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if ".focus_" in name:
            found.update(name.encode() + weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _windows(settings: Settings) -> dict[str, Any]:
    """What the adapter reads with, as far as results depend on it."""
    # the first stood in the earliest folders' names; what came later stands there where it is chosen
    names = ("decoding", "storage", "storage_dir")
    changed = [name for name in SHARED_FIELDS if getattr(settings.config, name) != getattr(FocusConfig, name)]
    chosen = {name: getattr(settings.config, name) for name in {*names, *changed}}
    return {"sizes": asdict(settings.sizes), "frames": asdict(settings.frames), "bos": settings.bos, **chosen}
