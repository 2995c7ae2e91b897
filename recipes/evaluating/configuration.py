"""The configuration of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lib.base_model import ModelArguments
from lib.command_line import listed
from lib.yaml_files import build, check_names, expanded, read_config

from focus_peft.tasks import RECORD_TASKS, TASKS, LongPerplexityTask, PerplexityTask, method_named
from focus_peft.tasks.longppl import ALPHA, BETA, SHORT, STRIDE


PERPLEXITY, EVERY_TOKEN, LONGPPL = "perplexity", "perplexity_all", "longppl"
# Tasks that score the tokens of given texts
TEXT_TASKS = (PERPLEXITY, EVERY_TOKEN, LONGPPL)
# What tells the key tokens of "longppl", besides the evaluator
KEY_TOKENS = ("short", "stride", "alpha", "beta")
# Samples of a task that says nothing
SAMPLES = 20
# What an entry of `methods` may have besides the method's own options
LONGEST = "longest"
# The length of published records that are not cut
WHOLE = "whole"


@dataclass
class TaskArguments:
    """One task.

    Attributes:
        samples (`int`, *optional*): Prompts at each length. Defaults to 20; of published records all, which is also
            the most.
        lengths (`list`, *optional*): Tokens of prompt and answer; "4K" is 4096. Defaults to the evaluation's.
            Published records that are longer are cut in the middle; "whole", their default, leaves them as they are.
        methods (`list[str]`, *optional*): Labels of the methods that it is run with. Defaults to all.
        new_tokens (`int`, *optional*): Tokens of an answer. Defaults to as published.
        labels (`int`): Of "perplexity": tokens at the end of a text that are scored. Defaults to 256.
        short, stride (`int`): Of "longppl": tokens of the short context, behind which key tokens stand, and that share
            its start. Defaults to 4096 and 1024.
        alpha, beta (`float`): Of "longppl": thresholds of the long-short difference and the long-context likelihood,
            in nats. Defaults to 2 and -2.
    """

    samples: int | None = None
    lengths: list[Any] | None = None
    methods: list[str] | None = None
    new_tokens: int | None = None
    labels: int = 256
    short: int = SHORT
    stride: int = STRIDE
    alpha: float = ALPHA
    beta: float = BETA

    def text_task(self, name: str, length: int, seed: int = 0) -> PerplexityTask:
        """One of `TEXT_TASKS` at one length; `seed` chooses its texts.

        Raises:
            ValueError: if a text of that length has not enough tokens.
        """
        longest, samples = max(self.lengths or [length]), self.samples or SAMPLES
        if name == LONGPPL:
            return LongPerplexityTask(length, samples, None, longest, seed, self.short)
        return PerplexityTask(length, samples, self.labels if name == PERPLEXITY else None, longest, seed)


@dataclass
class Evaluation:
    """A configuration.

    Attributes:
        model (`ModelArguments`): The base model, as in a training recipe.
        tasks (`dict`): Names of tasks, and the fields of `TaskArguments` for each.
        methods (`list` or `dict`): Names of methods, or labels with options:
            `{wide: {method: adapter, local_size: 1024}}`. "kvpress:SnapKV@0.5" is a press of kvpress. With `longest` a
            method is left out at larger lengths, where it would take too long: `{yarn: {longest: 16K}}`.
        lengths (`list`): Lengths of all tasks that have none of their own.
        adapter (`str`, *optional*): Folder or name of the trained adapter. None: untrained twins.
        focus (`dict`): Fields of the adapter's configuration to replace, such as `chunk_size` and `local_size`.
        texts (`list`): Held-out text, for perplexity and as haystacks: files (patterns), or datasets (see
            `texts.TextDataset`).
        data (`dict`): Folders with the original files of "longbench" and "infinitebench". Without one they come from
            the Hub.
        words (`str`, *optional*): A file of words for tasks that list some, one a line. Defaults to those of
            `focus_peft.tasks.ruler.word_list`.
        chat (`bool`): Put the prompts of all tasks but "passkey", and LongBench's few-shot and code tasks, into the
            chat template. Defaults to False.
        seed (`int`): Chooses keys, values and texts. Defaults to 0.
        evaluator (`ModelArguments`, *optional*): Tells the key tokens of "longppl". None: the base model, with full
            attention.
        keep_chunks_gb (`float`): GiB for chunks that were read, so that the next method or prompt with the same chunks
            at the same places does not read them again (`model.keeping_chunks`). Changes no result, but the seconds of
            samples. Defaults to 0.
        output_dir (`str`): Where the folder is made. Defaults to "outputs/evaluations".
    """

    model: ModelArguments
    tasks: dict[str, TaskArguments]
    methods: dict[str, dict[str, Any]]
    lengths: list[Any] = field(default_factory=list)
    adapter: str | None = None
    focus: dict[str, Any] = field(default_factory=dict)
    texts: list[Any] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    words: str | None = None
    chat: bool = False
    seed: int = 0
    evaluator: ModelArguments | None = None
    keep_chunks_gb: float = 0.0
    output_dir: str = "outputs/evaluations"

    @classmethod
    def load(cls, file: str, overrides: Sequence[str] = ()) -> Evaluation:
        """Read a configuration, and check all names in it.

        Raises:
            ValueError: for an unknown entry, task or method, a value of another type, or a task without lengths.
        """
        values = expanded(read_config(file, overrides, needed=("model", "tasks", "methods")))
        if isinstance(values["methods"], list):
            values["methods"] = {str(name): None for name in values["methods"]}
        for name in ("tasks", "methods"):
            if isinstance(values[name], dict):
                values[name] = {entry: options or {} for entry, options in values[name].items()}
        return build(cls, values)

    def __post_init__(self) -> None:
        check_names("`tasks`", self.tasks, [*TEXT_TASKS, *TASKS, *RECORD_TASKS])
        check_names("`data`", self.data, dict.fromkeys(task.benchmark.name for task in RECORD_TASKS.values()))
        for label, entry in self.methods.items():
            method_named(entry.get("method", label))
            if LONGEST in entry:
                entry[LONGEST] = tokens_of(entry[LONGEST], f"methods.{label}.{LONGEST}")
        self.lengths = [tokens_of(length, "lengths") for length in self.lengths]
        for name, task in self.tasks.items():
            own: list[Any] = [None] if name in RECORD_TASKS else self.lengths
            task.lengths = own if task.lengths is None else [_length(entry, name) for entry in task.lengths]
            if task.samples is None and name not in RECORD_TASKS:
                task.samples = SAMPLES
            if not task.lengths or (task.samples is not None and task.samples < 1):
                raise ValueError(f"`tasks.{name}` needs at least one of `lengths`, and `samples` above 0, got {task}.")
            check_names(f"`tasks.{name}.methods`", task.methods or [], self.methods)
            if name in TEXT_TASKS:
                task.text_task(name, min(task.lengths))

    def identity(self) -> dict[str, Any]:
        """What samples depend on, files left out. Without "longppl" and `evaluator` it is what it was before there
        were any.

        Which methods a task is run with, and up to which length, is not in it: that changes no sample.
        """
        settings = asdict(self)
        del settings["output_dir"], settings["data"], settings["keep_chunks_gb"]
        if self.evaluator is None or LONGPPL not in self.tasks:
            del settings["evaluator"]
        for options in settings["methods"].values():
            options.pop(LONGEST, None)
        for name, task in settings["tasks"].items():
            del task["methods"]
            if name != LONGPPL:
                for key in KEY_TOKENS:
                    del task[key]
        return settings


def tokens_of(length: Any, name: str) -> int:
    """4096 of 4096 or "4K"; `name` is the entry or the option that says so.

    Raises:
        ValueError: if it is neither.
    """
    text = str(length).upper()
    number = text.removesuffix("K")
    if not number.isdigit() or not int(number):
        raise ValueError(f"`{name}` must be in tokens, such as 4096 or 4K, got {length!r}.")
    return int(number) * (1024 if text.endswith("K") else 1)


def length_name(length: int | None) -> str:
    """How a length is written: "whole" for records as they are."""
    return WHOLE if length is None else f"{length:,}"


def _length(length: Any, task: str) -> int | None:
    return None if length == WHOLE and task in RECORD_TASKS else tokens_of(length, f"tasks.{task}.lengths")


def chosen(option: str, words: str | None, known: Sequence[Any]) -> list[Any]:
    """What a comma-separated option picks of what the configuration has.

    Raises:
        ValueError: if it names something else: then the configuration must be changed, and is another one.
    """
    if words is None:
        return list(known)
    picked: list[Any] = listed(words)
    if option == "lengths":
        picked = [None if word == WHOLE else tokens_of(word, f"--{option}") for word in picked]
    for entry in picked:
        if entry not in known:
            have = ", ".join(WHOLE if one is None else str(one) for one in known)
            raise ValueError(
                f"`--{option}` names {WHOLE if entry is None else entry}, but the configuration has {have}; override "
                "the configuration itself, which makes it another evaluation."
            )
    return picked
