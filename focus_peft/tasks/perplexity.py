"""Language modelling: how well the last tokens of held-out documents are predicted, given more and more of what stands before them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .methods import Method


# Tokens at the end of a text that are scored
LABELS = 256


@dataclass(frozen=True)
class TextWindow:
    """A piece of a document, which ends at `end`; longer pieces begin earlier and have the same labels."""

    document: int
    end: int

    def ids(self, documents: Sequence[Sequence[int]], tokens: int) -> list[int]:
        """Its last `tokens` tokens."""
        return list(documents[self.document][self.end - tokens : self.end])


def text_windows(documents: Sequence[Sequence[int]], longest: int, samples: int, seed: int = 0) -> list[TextWindow]:
    """Places spread evenly over all documents that are long enough.

    Args:
        documents (`Sequence[Sequence[int]]`): Token ids.
        longest (`int`): Tokens of the longest piece that will be read. Shorter ones that end in the same place have the
            same labels, so that one length can be compared with another.
        samples (`int`): How many. All possible places are divided into so many equal parts, and one drawn from each.
        seed (`int`): Draws it.

    Raises:
        ValueError: if no document has `longest` tokens, or there are fewer places than `samples`.
    """
    places = [max(0, len(ids) - longest + 1) for ids in documents]
    total = sum(places)
    if not total:
        most = max(map(len, documents), default=0)
        raise ValueError(
            f"No document has `longest` ({longest}) tokens, the longest of {len(documents)} has {most}; give longer texts, or "
            "choose shorter lengths."
        )
    if not 0 < samples <= total:
        raise ValueError(f"`samples` must be from 1 to the {total} places in these documents, got {samples}.")
    generator = random.Random(seed)
    windows = []
    for number in range(samples):
        place = generator.randrange(number * total // samples, (number + 1) * total // samples)
        document = 0
        while place >= places[document]:
            place -= places[document]
            document += 1
        windows.append(TextWindow(document, longest + place))
    return windows


@dataclass(frozen=True)
class PerplexityTask:
    """Perplexity of the last tokens of texts.

    Attributes:
        tokens (`int`): Tokens of a text, labels included.
        samples (`int`): Texts. Default: 10.
        labels (`int`): Tokens at its end that are scored. Default: 256.
        longest (`int`, *optional*): With the same value, tasks of other lengths score the same labels. Default: `tokens`.
        seed (`int`): Chooses the texts. Default: 0.
    """

    tokens: int
    samples: int = 10
    labels: int = LABELS
    longest: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.longest is not None and self.longest < self.tokens:
            raise ValueError(
                f"`longest` is {self.longest}, less than the {self.tokens} `tokens` of a text; give more."
            )
        if not 0 < self.labels < self.tokens:
            raise ValueError(f"`labels` must be from 1 to `tokens` - 1 = {self.tokens - 1}, got {self.labels}.")

    def texts(self, documents: Sequence[Sequence[int]]) -> list[list[int]]:
        """The token ids of every text."""
        windows = text_windows(documents, self.longest or self.tokens, self.samples, self.seed)
        return [window.ids(documents, self.tokens) for window in windows]

    def text(self, documents: Sequence[Sequence[int]], number: int) -> list[int]:
        """The token ids of one of them."""
        windows = text_windows(documents, self.longest or self.tokens, self.samples, self.seed)
        return windows[number].ids(documents, self.tokens)

    def __call__(self, method: Method, documents: Sequence[Sequence[int]]) -> dict[str, float]:
        """{"cross_entropy": mean over all labels, in nats, "perplexity": its exponential}."""
        means = [float(method.losses(ids, self.labels).mean()) for ids in self.texts(documents)]
        loss = math.fsum(means) / len(means)
        return {"cross_entropy": loss, "perplexity": math.exp(loss)}
