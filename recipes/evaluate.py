"""Evaluate an adapter, and baselines beside it, as a configuration says.

    python recipes/evaluate.py --config recipes/evaluations/smollm2.yaml
    python recipes/evaluate.py --config recipes/evaluations/smollm2.yaml --tasks passkey --lengths 4K,16K --limit 5
    python recipes/evaluate.py --config recipes/evaluations/smollm2.yaml adapter=path/to/adapter tasks.passkey.samples=50

A configuration is a YAML file with the fields of `Evaluation`; `key=value` overrides it. Every sample goes to `samples.jsonl` in a
folder that is named by a digest of the configuration, the weights of model and adapter, and the texts: the same command goes on
where it was interrupted, and nothing is ever mixed with samples of something else. `--tasks`, `--methods`, `--lengths`,
`--limit` and `--max-minutes` run a part of the same evaluation. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from common import ModelArguments, load_model, read_values
from peft import PeftConfig, PeftModel, get_peft_model
from results import SampleFile, summarise, table, write_text
from tqdm import tqdm

import focus_peft
from focus_peft import FocusConfig
from focus_peft.fingerprint import digest
from focus_peft.metrics import peak_memory
from focus_peft.tasks import METHODS, TASKS, Method, PerplexityTask, Source


ROOT = Path(__file__).resolve().parents[1]
PERPLEXITY = "perplexity"


@dataclass
class TaskArguments:
    """One task.

    Attributes:
        samples (`int`): Prompts at each length. Default: 20.
        lengths (`list`, *optional*): Tokens of prompt and answer; "4K" is 4096. Default: the evaluation's.
        methods (`list[str]`, *optional*): Labels of the methods that it is run with. Default: all.
        new_tokens (`int`, *optional*): Tokens of an answer. Default: as published.
        labels (`int`): Of perplexity: tokens at the end of a text that are scored. Default: 256.
    """

    samples: int = 20
    lengths: list[Any] | None = None
    methods: list[str] | None = None
    new_tokens: int | None = None
    labels: int = 256


@dataclass
class Evaluation:
    """A configuration.

    Attributes:
        model (`ModelArguments`): The base model, as in a training recipe.
        tasks (`dict`): Names of tasks, and the fields of `TaskArguments` for each.
        methods (`list` or `dict`): Names of methods, or labels with options: `{wide: {method: adapter, local_size: 1024}}`.
        lengths (`list`): Lengths of all tasks that have none of their own.
        adapter (`str`, *optional*): Folder or name of the trained adapter. None: untrained twins.
        focus (`dict`): Fields of the adapter's configuration to replace, such as `chunk_size` and `local_size`.
        texts (`list[str]`): Files of held-out text (patterns), for perplexity and as haystacks.
        words (`str`, *optional*): A file of words for tasks that list some, one a line. Default: those of `focus_peft.tasks.words`.
        chat (`bool`): Put the prompts of all tasks but "passkey" into the chat template. Default: False.
        seed (`int`): Chooses keys, values and texts. Default: 0.
        output_dir (`str`): Where the folder is made. Default: "outputs/evaluations".
    """

    model: ModelArguments
    tasks: dict[str, TaskArguments]
    methods: dict[str, dict[str, Any]]
    lengths: list[int] = field(default_factory=list)
    adapter: str | None = None
    focus: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    words: str | None = None
    chat: bool = False
    seed: int = 0
    output_dir: str = "outputs/evaluations"

    @classmethod
    def load(cls, file: str, overrides: Sequence[str] = ()) -> Evaluation:
        """Read a configuration, and check all names in it.

        Raises:
            ValueError: for an entry, a task or a method that there is not, or a task without lengths.
        """
        values = read_values(file, overrides, lambda key: key.split("."))
        _check_names("the configuration", values, [entry.name for entry in fields(cls)])
        for name in ("model", "tasks", "methods"):
            if not values.get(name):
                raise ValueError(f"`{name}` is missing in {file!r}; see recipes/evaluations for complete ones.")
        _check_names("`tasks`", values["tasks"], [PERPLEXITY, *TASKS])
        named = values["methods"]
        methods = {name: {} for name in named} if isinstance(named, list) else {k: v or {} for k, v in named.items()}
        _check_names("`methods`", [entry.get("method", label) for label, entry in methods.items()], METHODS)
        lengths = [tokens_of(length) for length in values.get("lengths") or []]
        tasks = {}
        for name, entry in values["tasks"].items():
            _check_names(f"`tasks.{name}`", entry or {}, [one.name for one in fields(TaskArguments)])
            task = TaskArguments(**(entry or {}))
            task.lengths = lengths if task.lengths is None else [tokens_of(length) for length in task.lengths]
            if not task.lengths or task.samples < 1:
                raise ValueError(f"`tasks.{name}` needs at least one of `lengths`, and `samples` above 0, got {task}.")
            _check_names(f"`tasks.{name}.methods`", task.methods or [], methods)
            if name == PERPLEXITY:
                PerplexityTask(min(task.lengths), task.samples, task.labels)
            tasks[name] = task
        model = ModelArguments(**values["model"])
        return cls(**{**values, "model": model, "tasks": tasks, "methods": methods, "lengths": lengths})


@dataclass(frozen=True)
class Job:
    """One task at one length."""

    task: str
    length: int
    arguments: TaskArguments
    methods: tuple[str, ...]


class Evaluator:
    """An evaluation with everything loaded.

    Args:
        evaluation (`Evaluation`): What is run.
        name (`str`): The folder's name starts with it.
    """

    def __init__(self, evaluation: Evaluation, name: str) -> None:
        self.evaluation = evaluation
        self.texts = read_texts(evaluation.texts)
        self.words = [] if evaluation.words is None else "\n".join(read_texts([evaluation.words])).split()
        self.model, self.tokenizer = load(evaluation)
        self.methods: dict[str, Method] = {}
        for label, options in evaluation.methods.items():
            options = dict(options)
            self.methods[label] = METHODS[options.pop("method", label)](self.model, **options)
        self.source = Source(self.tokenizer, evaluation.seed, self.texts, self.words, evaluation.chat)
        self._documents: list[list[int]] | None = None
        self.identity = self._identity()
        self.folder = (
            Path(evaluation.output_dir) / f"{name}-{digest(json.dumps(self.identity, sort_keys=True).encode())[:12]}"
        )
        self.skipped: dict[tuple, dict[str, Any]] = {}

    def _identity(self) -> dict[str, Any]:
        """Everything that samples depend on, the code left out."""
        settings = asdict(self.evaluation)
        del settings["output_dir"]
        windows = asdict(self.model.base_model.settings())
        del windows["chunk_batch_size"]  # changes no result
        return {
            **settings,
            "windows": windows,
            "base_model": self.model.base_model.fingerprint.to_dict(),
            "twins": None if self.evaluation.adapter is None else digest_of_twins(self.model),
            "texts_digests": [digest(text.encode()) for text in self.texts],
            "words_digest": digest("\n".join(self.words).encode()),
        }

    def jobs(self) -> list[Job]:
        """All tasks at all lengths, short ones first."""
        jobs = []
        for name, task in self.evaluation.tasks.items():
            methods = tuple(task.methods or self.methods)
            jobs += [Job(name, length, task, methods) for length in dict.fromkeys(task.lengths or [])]
        return sorted(jobs, key=lambda job: job.length)

    def documents(self) -> list[list[int]]:
        """The texts in tokens."""
        if self._documents is None:
            tokens = (
                self.tokenizer(self.texts, verbose=False, add_special_tokens=False)["input_ids"] if self.texts else []
            )
            self._documents = [list(ids) for ids in tokens]
        return self._documents

    def run(self, jobs: list[Job], limit: int | None, seconds: float | None) -> bool:
        """Run what is not there yet. Returns whether everything is there now."""
        end = float("inf") if seconds is None else time.monotonic() + seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "config.json", json.dumps(self.identity, indent=2) + "\n")
        samples = SampleFile(self.folder / "samples.jsonl")
        commit = git_commit()
        todo = []
        for job in jobs:
            labels = [label for label in job.methods if self._can_read(label, job)]
            for number in spread_order(job.arguments.samples)[:limit]:
                missing = [m for m in labels if (job.task, m, job.length, number) not in samples.samples]
                todo += [(job, number, missing)] if missing else []
        total = sum(job.length * len(missing) for job, _, missing in todo)
        interval = 0.5 if sys.stderr.isatty() else 60
        try:
            with tqdm(total=total, unit="tok", unit_scale=True, mininterval=interval, smoothing=0.05) as bar:
                for place, (job, number, labels) in enumerate(todo):
                    bar.set_description(f"{job.task} {job.length:,}", refresh=False)
                    for sample in self.sample(job, number, labels):
                        samples.add({**sample, "commit": commit})
                        bar.update(job.length)
                        left = place + 1 < len(todo) or sample["method"] != labels[-1]
                        if left and time.monotonic() > end:
                            return False
                    if place + 1 == len(todo) or todo[place + 1][0] is not job:
                        self.write_summary(samples)
        finally:
            self.write_summary(samples)
            samples.close()
        return True

    def _can_read(self, label: str, job: Job) -> bool:
        new = job.arguments.labels if job.task == PERPLEXITY else self._new_tokens(job)
        reason = self.methods[label].refusal(job.length, new)
        if reason is not None:
            self._skip(job, label, reason)
        return reason is None

    def _new_tokens(self, job: Job) -> int:
        return job.arguments.new_tokens or TASKS[job.task].new_tokens

    def _skip(self, job: Job, label: str, reason: str) -> None:
        entry = {"task": job.task, "method": label, "length": job.length, "reason": reason}
        self.skipped[job.task, label, job.length] = entry

    def sample(self, job: Job, number: int, labels: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Run one sample with several methods."""
        arguments = job.arguments
        try:
            if job.task == PERPLEXITY:
                longest = max(arguments.lengths or [])
                task = PerplexityTask(job.length, arguments.samples, arguments.labels, longest, self.evaluation.seed)
                ids, depth, references = task.text(self.documents(), number), None, None
            else:
                made = TASKS[job.task].sample(self.source, job.length, number, arguments.samples)
                ids, depth, references = made.ids, made.depth, list(made.references)
        except ValueError as error:  # what is too short for a task must not end all others
            for label in labels:
                self._skip(job, label, str(error))
            return
        for label in labels:
            begin = time.perf_counter()
            if references is None:
                prediction, metric = None, "cross_entropy"
                score = float(self.methods[label].losses(ids, arguments.labels).double().mean())
            else:
                spec = TASKS[job.task]
                new = self.methods[label].generate(ids, self._new_tokens(job))
                prediction = self.tokenizer.decode(new, skip_special_tokens=True)
                score, metric = spec.score(prediction, references), "accuracy" if spec.is_binary else "score"
            yield {
                "task": job.task,
                "method": label,
                "length": job.length,
                "number": number,
                "depth": depth,
                "input_tokens": len(ids),
                "prediction": prediction,
                "references": references,
                "metric": metric,
                "score": score,
                "seconds": round(time.perf_counter() - begin, 3),
            }

    def write_summary(self, samples: SampleFile) -> None:
        """Write `summary.json` and `table.md` of all samples in the folder."""
        planned = {
            (job.task, label, job.length): job.arguments.samples for job in self.jobs() for label in job.methods
        }
        # a sample of an earlier run tells that it could be made
        skipped = [entry for key, entry in self.skipped.items() if not any(k[:3] == key for k in samples.samples)]
        results = summarise(samples.samples.values(), planned)
        device = self.model.device
        summary = {
            "results": results,
            "not_run": skipped,
            "configuration": self.identity,
            "commits": sorted({str(sample["commit"]) for sample in samples.samples.values()}),
            "versions": {m.__name__: m.__version__ for m in (focus_peft, peft, torch, transformers)},
            "machine": {
                "python": platform.python_version(),
                "processor": f"{platform.system()}, {platform.machine()}",
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
                "threads": torch.get_num_threads(),
            },
            "seconds": round(sum(sample["seconds"] for sample in samples.samples.values()), 1),
            "peak_memory_gb_of_the_last_run": round(peak_memory(device) / 1e9, 2),
        }
        write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_text(self.folder / "table.md", table(results, skipped))


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


def read_texts(patterns: Sequence[str]) -> list[str]:
    """All files, in the order of their names.

    Raises:
        ValueError: if a pattern fits none.
    """
    files: list[str] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise ValueError(
                f"`texts` or `words` names {pattern!r}, but there is no such file; see recipes/debian_texts.py for some."
            )
        files += found
    return [Path(file).read_text(encoding="utf-8") for file in dict.fromkeys(files)]


def spread_order(count: int) -> list[int]:
    """All numbers below `count`, so that every beginning of the list is spread over them (bits in reverse)."""
    bits = max(1, (count - 1).bit_length())
    order = [int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits)]
    return [number for number in order if number < count]


def tokens_of(length: Any) -> int:
    """4096 of 4096 or "4K".

    Raises:
        ValueError: if it is neither.
    """
    text = str(length).upper()
    number = text.removesuffix("K")
    if not number.isdigit() or not int(number):
        raise ValueError(f"`lengths` must be numbers of tokens such as 4096 or 4K, got {length!r}.")
    return int(number) * (1024 if text.endswith("K") else 1)


def git_commit() -> str | None:
    """The commit of this code, with a mark if it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _check_names(where: str, names: Any, known: Any) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"{where[0].upper() + where[1:]} has the unknown entry `{name}`; there are {', '.join(known)}."
            )


def chosen(option: str, words: str | None, known: Sequence[Any]) -> list[Any]:
    """What a comma-separated option picks of what the configuration has.

    Raises:
        ValueError: if it names something else: then the configuration must be changed, and is another one.
    """
    if words is None:
        return list(known)
    picked = [tokens_of(word) if option == "lengths" else word for word in words.split(",")]
    for entry in picked:
        if entry not in known:
            raise ValueError(
                f"`--{option}` names {entry}, but the configuration has {', '.join(map(str, known))}; override the configuration "
                "itself, which makes it another evaluation."
            )
    return picked


def prepare(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[Evaluator, list[Job]]:
    """Load everything, and choose what is run.

    Raises:
        ValueError: for a configuration or options that cannot be.
    """
    evaluation = Evaluation.load(args.config, overrides)
    tasks = chosen("tasks", args.tasks, list(evaluation.tasks))
    methods = chosen("methods", args.methods, list(evaluation.methods))
    every = sorted({length for task in evaluation.tasks.values() for length in task.lengths or []})
    lengths = chosen("lengths", args.lengths, every)
    if evaluation.adapter is None:
        print("warning: no `adapter`, so the twins are untrained.", file=sys.stderr)
    evaluator = Evaluator(evaluation, Path(args.config).stem)
    jobs = [
        Job(job.task, job.length, job.arguments, tuple(label for label in job.methods if label in methods))
        for job in evaluator.jobs()
        if job.task in tasks and job.length in lengths
    ]
    return evaluator, jobs


def main(args: argparse.Namespace, overrides: Sequence[str]) -> bool:
    """Returns whether everything that was asked for is there."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
    try:
        evaluator, jobs = prepare(args, overrides)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(evaluator.folder, flush=True)
    done = evaluator.run(jobs, args.limit, None if args.max_minutes is None else 60 * args.max_minutes)
    print((evaluator.folder / "table.md").read_text(encoding="utf-8"))
    return done


def parse_args(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the configuration, a YAML file")
    for name in ("tasks", "methods", "lengths"):
        parser.add_argument(f"--{name}", help=f"only these {name} of the configuration, separated by commas")
    parser.add_argument("--limit", type=_positive, help="only so many samples of each task, method and length")
    parser.add_argument("--max-minutes", type=float, help="stop after the sample that is running then")
    return parser.parse_known_args(words)


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an integer above 0, got {text}")
    return int(text)


if __name__ == "__main__":
    options, rest = parse_args()
    try:
        if not main(options, rest):
            print("Stopped by --max-minutes; the same command goes on.", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except BlockingIOError as error:
        sys.exit(f"error: {error}")
