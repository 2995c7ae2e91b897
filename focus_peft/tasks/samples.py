"""Samples of tasks that are answered in words: how prompts are filled to a length in tokens, and how answers are scored."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


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
    """A prompt before it is tokenised.

    Attributes:
        text (`str`): Everything that is given.
        start (`str`): How the answer starts; the model goes on from there.
        references, depth: Those of the sample.
        chat (`bool`): Whether it may be put into a chat template. Default: True.
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
        seed (`int`): Chooses everything that is random. Default: 0.
        texts (`Sequence[str]`): Real texts, for tasks that hide something in them; repeated where they are too short.
        words (`Sequence[str]`): Words for tasks that list some. Default: those of `tasks.words`.
        chat (`bool`): Put prompts into the tokenizer's chat template, and the start of the answer behind it. Default: False.
        data (`Mapping[str, str]`): Folders with the original files of benchmarks, by the benchmark's name ("longbench",
            "infinitebench"). Default: they come from the Hub.
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


class Task(ABC):
    """A task that is answered in words.

    Attributes:
        name (`str`): Its published name.
        new_tokens (`int`): Tokens that an answer may have, as published.
        is_binary (`bool`): Whether an answer is either right or wrong.
    """

    name: str
    new_tokens: int
    is_binary: bool

    @abstractmethod
    def sample(self, source: Source, tokens: int, number: int, samples: int) -> Sample:
        """Make a prompt that has, with its answer, at most `tokens` tokens.

        Args:
            source (`Source`): What it is made of.
            tokens (`int`): How long it may be.
            number (`int`): Which of the samples; chooses depth and random parts.
            samples (`int`): Depths, where a task has them, are spread evenly over so many samples.

        Raises:
            ValueError: if `tokens` has no room for the question alone.
        """

    @abstractmethod
    def score(self, prediction: str, references: Sequence[str]) -> float:
        """From 0 (wrong) to 1 (right)."""

    def score_sample(self, prediction: str, sample: Sample) -> float:
        """The score of an answer to a sample, for metrics that need more of it than its references too."""
        return self.score(prediction, list(sample.references))


def spread(number: int, samples: int) -> float:
    """The depth of a sample, evenly from 0 to 1."""
    return number / max(1, samples - 1)


def fill(build: Callable[[int], Draft], source: Source, limit: int, least: int = 0) -> Sample:
    """The longest prompt of at most `limit` tokens.

    Args:
        build (`Callable[[int], Draft]`): The prompt with so many units of haystack (words, sentences, ...).
        source (`Source`): Tokenises it.
        limit (`int`): Tokens.
        least (`int`): Units that it cannot do without.

    Returns:
        `Sample`: Shorter than `limit` by less than a unit, or a thousandth.

    Raises:
        ValueError: if the prompt is too long even with `least` units.
    """
    draft = build(least)
    ids = source.ids(draft)
    bare, fits, above = len(ids), least, None
    if bare > limit:
        raise ValueError(f"`tokens` leaves {limit} for the prompt, but the shortest one has {bare}; give more.")
    units, tries = least + 16, 0
    while above is None or above - fits > 1:
        longer = build(units)
        longer_ids = source.ids(longer)
        unit = max((len(longer_ids) - bare) / (units - least), 1e-3)  # tokens of one
        if len(longer_ids) > limit:
            above = units
        else:
            draft, ids, fits = longer, longer_ids, units
        if limit - len(ids) < max(unit, limit / 1000):
            break
        guess = least + int((limit - bare) / unit)
        if above is not None:  # where units are not alike, guesses creep: then halves are faster
            guess = guess if tries % 2 else (fits + above) // 2
            guess = min(guess, above - 1)
        units, tries = max(fits + 1, guess), tries + 1
    return Sample(ids, draft.references, draft.depth)


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """RULER's metric: the share of references that stand in the answer, in any case."""
    return sum(reference.lower() in prediction.lower() for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """RULER's metric for questions with several right answers: whether one of them stands in the answer, in any case."""
    return float(any(reference.lower() in prediction.lower() for reference in references))


def first_integer_match(prediction: str, references: Sequence[str]) -> float:
    """InfiniteBench's metric for passkeys and number strings: whether the first run of digits is the reference."""
    found = re.search(r"[0-9]+", prediction)
    return float(found is not None and found.group() == references[0])


def word_match(prediction: str, references: Sequence[str]) -> float:
    """InfiniteBench's metric for key-value retrieval: whether the reference is one of the answer's words."""
    return float(references[0] in re.sub(r"[\n:\"'.,?!{}]", " ", prediction).split())
