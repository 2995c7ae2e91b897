"""What an evaluation runs: its tasks at their lengths, and the prompts and scores of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluating.configuration import PERPLEXITY, TEXT_TASKS, Evaluation, TaskArguments, length_name
from focus_peft.tasks import RECORD_TASKS, TASKS, Method, PerplexityTask, RecordTask, Sample, Source, Task
from focus_peft.tasks.records import RecordFacts


@dataclass(frozen=True)
class Job:
    """One task at one length; None: published records as they are."""

    task: str
    length: int | None
    arguments: TaskArguments
    methods: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.task} {length_name(self.length)}"

    @property
    def samples(self) -> int:
        """How many there are."""
        if self.arguments.samples is None:
            raise ValueError(f"`samples` of {self.task} is not known before its records are; see `record_facts`.")
        return self.arguments.samples

    @property
    def new_tokens(self) -> int:
        """Tokens that are generated, or labels."""
        if self.task in TEXT_TASKS:
            return self.text_task().label_count
        return self.arguments.new_tokens or task_of(self).new_tokens

    def tokens(self, facts: Mapping[str, RecordFacts]) -> int:
        """About how many tokens a sample has; `facts` are those of `record_facts`."""
        if self.length is not None:
            return self.length
        return facts[self.task].size // facts[self.task].records // 4

    def text_task(self, seed: int = 0) -> PerplexityTask:
        """The task of one of `TEXT_TASKS`; `seed` chooses its texts."""
        return self.arguments.text_task(self.task, self.length or 0, seed)

    def refusal(self, method: Method) -> str | None:
        """Why a method cannot run it, if it cannot. Records are cut, so room for one prompt token is enough."""
        tokens = self.new_tokens + 1 if self.task in RECORD_TASKS or self.length is None else self.length
        return method.refusal(tokens, self.new_tokens)


def task_of(job: Job) -> Task:
    """The task, if it is answered in words, with the answer's length that is asked for."""
    if job.task in TASKS:
        return TASKS[job.task]
    task = RECORD_TASKS[job.task]
    return task if job.arguments.new_tokens is None else replace(task, new_tokens=job.arguments.new_tokens)


def metric_of(task: Task) -> str:
    """What a sample's score is called."""
    if isinstance(task, RecordTask):
        return task.metric
    return "accuracy" if task.is_binary else "score"


def record_facts(evaluation: Evaluation) -> dict[str, RecordFacts]:
    """Find the files of all tasks that need one, and put the number of their records into `evaluation`.

    Raises:
        ValueError: if one cannot be read or is empty.
        ImportError: if a metric needs a package that is not there.
    """
    found = {}
    for name, arguments in evaluation.tasks.items():
        if name not in RECORD_TASKS:
            continue
        RECORD_TASKS[name].check_packages()
        file = RECORD_TASKS[name].file(evaluation.data)
        found[name] = file.facts()
        if not found[name].records:
            raise ValueError(f"The file {file} of `{name}` is empty; get it anew.")
        arguments.samples = min(arguments.samples or found[name].records, found[name].records)
    return found


def jobs_of(evaluation: Evaluation, methods: Iterable[str]) -> list[Job]:
    """All tasks at all lengths, short ones first and whole records last."""
    jobs = []
    for name, task in evaluation.tasks.items():
        labels = tuple(task.methods or methods)
        jobs += [Job(name, length, task, labels) for length in dict.fromkeys(task.lengths or [])]
    return sorted(jobs, key=lambda job: (job.length is None, job.length or 0))


def spread_order(count: int) -> list[int]:
    """All numbers below `count`, so that every beginning of the list is spread over them (bits in reverse)."""
    bits = max(1, (count - 1).bit_length())
    order = [int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits)]
    return [number for number in order if number < count]


def prompts(
    job: Job, number: int, source: Source, documents: Sequence[Sequence[int]], methods: Mapping[str, Method]
) -> dict[str, Sample]:
    """What each method reads: the same, but records that are too long for one are cut in the middle for it.

    Raises:
        ValueError: if there can be no such prompt.
    """
    if job.task in TEXT_TASKS:
        return dict.fromkeys(methods, Sample(job.text_task(source.seed).text(documents, number), ()))
    task = task_of(job)
    if not isinstance(task, RecordTask):
        return dict.fromkeys(methods, task.sample(source, job.length or 0, number, job.samples))
    whole = task.sample(source, job.length, number, job.samples)
    tokens = len(whole.ids) + task.new_tokens
    made = {}
    for label, method in methods.items():
        longest = method.longest(tokens, task.new_tokens)
        made[label] = whole if longest >= tokens else task.sample(source, longest, number, job.samples)
    return made


def scored(
    job: Job, method: Method, sample: Sample, source: Source, keys: Sequence[int] | None = None
) -> dict[str, Any]:
    """A method's answer with its score, or its mean loss over a text's labels.

    Args:
        job (`Job`): What the sample belongs to.
        method (`Method`): What reads it.
        sample (`Sample`): What `prompts` made for the method.
        source (`Source`): What it was made from.
        keys (`Sequence[int]`, *optional*): Places of a text's tokens that are scored. Default: all labels. With none
            there is no score.
    """
    if job.task in TEXT_TASKS:
        losses = job.text_task(source.seed).losses(method, sample.ids, keys)
        return {
            "prediction": None,
            "references": None,
            "metric": "cross_entropy",
            **({} if job.task == PERPLEXITY else {"labels": len(losses)}),
            "score": float(losses.double().mean()) if len(losses) else None,
        }
    task = task_of(job)
    prediction = source.tokenizer.decode(method.generate(sample.ids, job.new_tokens), skip_special_tokens=True)
    exact = task.is_exact(prediction, sample.references)
    return {
        "prediction": prediction,
        "references": list(sample.references),
        "metric": metric_of(task),
        "score": task.score_sample(prediction, sample),
        **({} if exact is None else {"exact": exact}),
    }
