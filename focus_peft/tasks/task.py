"""Tasks that are answered in words, and how a haystack is filled to a length in tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from .samples import Draft, Request, Sample, Source


class Task(ABC):
    """A task that is answered in words.

    Attributes:
        name (`str`): Its published name.
        new_tokens (`int`): Tokens that an answer may have, as published.
        is_binary (`bool`): Whether an answer is either right or wrong.
        measure (`Callable`): The score of an answer against its references.
    """

    name: str
    new_tokens: int
    is_binary: bool
    measure: Callable[[str, Sequence[str]], float]

    @abstractmethod
    def sample(self, source: Source, tokens: int, number: int, samples: int) -> Sample:
        """Make a prompt that has, with its answer, at most `tokens` tokens; see [`Request`] for the arguments.

        Raises:
            ValueError: if `tokens` has no room for the question alone.
        """

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """From 0 (wrong) to 1 (right)."""
        return self.measure(prediction, references)

    def is_exact(self, prediction: str, references: Sequence[str]) -> bool | None:
        """Whether an answer is right to the letter, for tasks whose score does not say so. None: it is not asked."""
        return None

    def score_sample(self, prediction: str, sample: Sample) -> float:
        """The score of an answer to a sample, for metrics that need more of it than its references too."""
        return self.score(prediction, list(sample.references))


class FilledTask(Task):
    """A task whose prompts hide something in a haystack, which is filled to any length."""

    def least(self, request: Request) -> int:
        """Units of haystack (words, sentences, ...) that a prompt cannot do without."""
        return 0

    @abstractmethod
    def draft(self, request: Request, units: int) -> Draft:
        """The prompt with so many units of haystack."""

    def sample(self, source: Source, tokens: int, number: int, samples: int) -> Sample:
        request = Request(source, tokens, number, samples)
        return fill(lambda units: self.draft(request, units), source, tokens - self.new_tokens, self.least(request))


def fill(build: Callable[[int], Draft], source: Source, limit: int, least: int = 0) -> Sample:
    """The longest prompt of at most `limit` tokens.

    Args:
        build (`Callable[[int], Draft]`): The prompt with so many units of haystack (words, sentences, ...).
        source (`Source`): Tokenizes it.
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
