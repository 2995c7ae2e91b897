"""Language modeling: how well the last tokens of held-out documents, or all, are predicted from what precedes them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from .methods.base import Method


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
        longest (`int`): Tokens of the longest piece that will be read. Shorter ones that end in the same place have
            the same labels, so that one length can be compared with another.
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
            f"No document has `longest` ({longest}) tokens, the longest of {len(documents)} has {most}; give longer "
            "texts, or choose shorter lengths."
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
    """Perplexity of the last tokens of texts, or of every token.

    With `labels=None` every token but a text's first is a label, and is given all tokens before it, as far as the
    method reads them. No text is read twice and no label twice. The adapter decodes the text from its first token on:
    its local window grows until it has `local_size` + `chunk_size` tokens, then its first `chunk_size` tokens become a
    chunk of the memory, and so on (`label_blocks`). So the first labels are the base model's, and each label sees its
    own candidates of all chunks so far; a chunk is read once, and a window's tokens `local_size` / `chunk_size` + 1
    times. Truncation has the same windows without the memory. This is perplexity with a sliding window whose stride is
    a chunk, and nothing of a text is left out.

    Attributes:
        tokens (`int`): Tokens of a text, labels included.
        samples (`int`): Texts. Defaults to 10.
        labels (`int`, *optional*): Tokens at its end that are scored. None: all but the first. Defaults to 256.
        longest (`int`, *optional*): With the same value, texts of tasks of other lengths end in the same places, so
            that as many labels are the same ones. Defaults to `tokens`.
        seed (`int`): Chooses the texts. Defaults to 0.
    """

    tokens: int
    samples: int = 10
    labels: int | None = LABELS
    longest: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.longest is not None and self.longest < self.tokens:
            raise ValueError(
                f"`longest` is {self.longest}, less than the {self.tokens} `tokens` of a text; give more."
            )
        if not 0 < self.label_count < self.tokens:
            raise ValueError(f"`labels` must be from 1 to `tokens` - 1 = {self.tokens - 1}, got {self.labels}.")

    @property
    def label_count(self) -> int:
        """Tokens of a text that are scored."""
        return self.tokens - 1 if self.labels is None else self.labels

    def windows(self, documents: Sequence[Sequence[int]]) -> list[TextWindow]:
        """Where the texts stand."""
        return text_windows(documents, self.longest or self.tokens, self.samples, self.seed)

    def texts(self, documents: Sequence[Sequence[int]]) -> list[list[int]]:
        """The token ids of every text."""
        return [window.ids(documents, self.tokens) for window in self.windows(documents)]

    def text(self, documents: Sequence[Sequence[int]], number: int) -> list[int]:
        """The token ids of one of them."""
        return self.windows(documents)[number].ids(documents, self.tokens)

    def losses(self, method: Method, ids: list[int], keys: Sequence[int] | None = None) -> torch.Tensor:
        """The cross-entropy (labels,) of each label of one text in nats; with `keys`, of those at these places."""
        if keys is None:
            return method.losses(ids, self.label_count)
        if not keys:
            return torch.zeros(0)
        return method.losses(ids, self.label_count)[torch.tensor(keys) - len(ids)]

    def __call__(self, method: Method, documents: Sequence[Sequence[int]]) -> dict[str, float]:
        """{"cross_entropy": mean over all labels, in nats, "perplexity": its exponential}."""
        loss = fmean(float(self.losses(method, ids).mean()) for ids in self.texts(documents))
        return {"cross_entropy": loss, "perplexity": math.exp(loss)}
