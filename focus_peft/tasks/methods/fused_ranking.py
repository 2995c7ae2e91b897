"""Words and meaning: chunks are retrieved by BM25 and by candidates, and both rankings count."""

from __future__ import annotations

from collections.abc import Sequence

from .bm25 import BM25


# What softens the lead of first places (Cormack et al., 2009)
SOFTENING = 60


class FusedRanking(BM25):
    """Retrieval as of `BM25`, where its ranking and that of the adapter's candidates (`chunk_scores`) are fused: the
    base model reads the chunks with the highest sums of reciprocal ranks.
    """

    def scores(self, ids: list[int], start: int, pieces: list[list[int]]) -> list[float]:
        (looked,) = self.model.chunk_scores(self._tensor(ids), **self.overrides)
        return fused(super().scores(ids, start, pieces), looked.tolist())

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        return self.refusal_for_room(tokens, new_tokens) or super().refusal(tokens, new_tokens)


def fused(*rankings: Sequence[float]) -> list[float]:
    """Reciprocal rank fusion of the scores that several rankings give the same things."""
    total = [0.0] * len(rankings[0])
    for scores in rankings:
        order = sorted(range(len(scores)), key=lambda number: -scores[number])
        for rank, number in enumerate(order, start=1):
            total[number] += 1 / (SOFTENING + rank)
    return total
