"""What prompts are made of, and what they are before and after they are tokenized."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any


# What passkeys and needles are hidden in, in the paper, Landmark Attention, RULER and InfiniteBench
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True)
class Sample:
    """One prompt and its answer.

    Attributes:
        ids (`list[int]`): The prompt.
        references (`tuple[str, ...]`): What the answer must hold.
        depth (`float`, *optional*): Where in the prompt it stands: 0 at the start, 1 at the end.
        classes (`tuple[str, ...]`): What an answer is chosen from, where it is.
        cut (`bool`): Whether something was taken out of the middle, so that it is short enough.
    """

    ids: list[int]
    references: tuple[str, ...]
    depth: float | None = None
    classes: tuple[str, ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class Draft:
    """A prompt before it is tokenized.

    Attributes:
        text (`str`): Everything that is given.
        start (`str`): How the answer starts; the model goes on from there.
        references, depth: Those of the sample.
        chat (`bool`): Whether it may be put into a chat template. Defaults to `True`.
    """

    text: str
    start: str
    references: tuple[str, ...]
    depth: float | None = None
    chat: bool = True


@dataclass
class Source:
    """What prompts are made of.

    Attributes:
        tokenizer (`PreTrainedTokenizerBase`): Its special tokens, if it adds any, count.
        seed (`int`): Chooses everything that is random. Defaults to 0.
        texts (`Sequence[str]`): Real texts, for tasks that hide something in them; repeated where they are too short.
        words (`Sequence[str]`): Words for tasks that list some. Defaults to those of `ruler.word_list`.
        chat (`bool`): Put prompts into the tokenizer's chat template, and the start of the answer behind it. Defaults
            to `False`.
        data (`Mapping[str, str]`): Folders with the original files of benchmarks, by the benchmark's name
            ("longbench", "infinitebench"). Without one, they come from the Hub.
    """

    tokenizer: Any
    seed: int = 0
    texts: Sequence[str] = ()
    words: Sequence[str] = ()
    chat: bool = False
    data: Mapping[str, str] = field(default_factory=dict)

    def random(self, *parts: Any) -> random.Random:
        """A generator of its own for every combination of `parts`."""
        return random.Random("/".join(map(str, (self.seed, *parts))))

    def ids(self, draft: Draft) -> list[int]:
        """Token ids of a prompt."""
        if not (self.chat and draft.chat):
            return self.tokenizer(draft.text + draft.start, verbose=False)["input_ids"]
        messages = [{"role": "user", "content": draft.text}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text + draft.start.lstrip(), add_special_tokens=False, verbose=False)["input_ids"]

    @cached_property
    def text_words(self) -> list[str]:
        """The words of all texts.

        Raises:
            ValueError: if there are no texts.
        """
        words = " ".join(self.texts).split()
        if not words:
            raise ValueError("`texts` is empty, but this task hides its needles in real texts; give at least one.")
        return words

    def sentences(self, words: int) -> list[str]:
        """The first `words` words of the texts, as sentences.

        A sentence ends where a full stop, question or exclamation mark is followed by a space; the benchmarks ask
        NLTK.
        """
        given = self.text_words
        return split_sentences(" ".join(given[place % len(given)] for place in range(words)))


@dataclass(frozen=True)
class Request:
    """Which prompt of a task is wanted.

    Attributes:
        source (`Source`): What it is made of.
        tokens (`int`): How long it may be, answer included.
        number (`int`): Which of the samples; chooses depth and random parts.
        samples (`int`): Depths, where a task has them, are spread evenly over so many samples.
    """

    source: Source
    tokens: int
    number: int
    samples: int

    @property
    def depth(self) -> float:
        """Where the answer stands, evenly from 0 to 1."""
        return spread(self.number, self.samples)

    def random(self, task: str, *parts: Any) -> random.Random:
        """A generator for this prompt of a task, in the same state at every call."""
        return self.source.random(task, self.tokens, self.number, *parts)


def spread(number: int, samples: int) -> float:
    """The depth of a sample, evenly from 0 to 1."""
    return number / max(1, samples - 1)


def split_sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text) if text else []


def random_uuid(generator: random.Random) -> str:
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


def published_prompts(module: str) -> dict[str, Any]:
    """The `prompts.json` beside a module's file: a benchmark's prompts to the letter, misprints too, by task."""
    return json.loads(Path(module).with_name("prompts.json").read_text(encoding="utf-8"))
