"""BM25: the base model reads the chunks that share rare words with the question."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from ...passes.chunking import cut, with_bos
from .local_window import LocalWindow


class BM25(LocalWindow):
    """Retrieval: the base model reads the best of the adapter's chunks, in their order in the text, and then the local
    window.

    Scores are BM25's (k1 = 1.2, b = 0.75) with token ids as words; the query is the adapter's dynamic prompt.

    Args:
        chunks (`int`): Chunks that are read. Defaults to 4.
        **overrides: As of [`Method`].
    """

    def __init__(self, model: Any, chunks: int = 4, **overrides: Any) -> None:
        super().__init__(model, **overrides)
        self.chunks = chunks

    def read(self, ids: list[int], start: int) -> list[int]:
        pieces = cut(ids[:start], self.settings.sizes.chunk)
        scores = self.scores(ids, start, pieces) if pieces else []
        best = sorted(sorted(range(len(pieces)), key=lambda number: -scores[number])[: self.chunks])
        read = [token for number in best for token in pieces[number]] + ids[start:]
        return with_bos(read, self.settings.bos if start else None)

    def scores(self, ids: list[int], start: int, pieces: list[list[int]]) -> list[float]:
        """Of each of the chunks before the local window, which starts at `start`."""
        return bm25(pieces, ids[max(start, len(ids) - self.settings.sizes.prompt) :])

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        sizes = self.settings.sizes
        longest = self.chunks * sizes.chunk + sizes.local + min(new_tokens, sizes.chunk) + 1
        if min(tokens, longest) <= self.facts.max_positions:
            return None
        positions = self.facts.max_positions
        return f"{self.chunks} chunks and a local window are more than the {positions} positions of the model."


def bm25(documents: list[list[int]], query: list[int], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """The BM25 score of every document for a query; each different word of the query counts once."""
    counts = [Counter(document) for document in documents]
    mean = sum(map(len, documents)) / max(1, len(documents))
    scores = [0.0] * len(documents)
    for word in sorted(set(query)):
        held = sum(word in count for count in counts)
        weight = math.log(1 + (len(documents) - held + 0.5) / (held + 0.5))
        for number, count in enumerate(counts):
            norm = k1 * (1 - b + b * len(documents[number]) / mean)
            scores[number] += weight * count[word] * (k1 + 1) / (count[word] + norm)
    return scores
