"""Metrics that look for the references in an answer, as RULER and InfiniteBench publish them."""

from __future__ import annotations

import re
from collections.abc import Sequence


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """RULER's metric: the share of references that stand in the answer, in any case."""
    return sum(reference.lower() in prediction.lower() for reference in references) / len(references)


def first_integer_match(prediction: str, references: Sequence[str]) -> float:
    """InfiniteBench's metric for passkeys and number strings: whether the first run of digits is the reference."""
    found = re.search(r"[0-9]+", prediction)
    return float(found is not None and found.group() == references[0])


def word_match(prediction: str, references: Sequence[str]) -> float:
    """InfiniteBench's metric for key-value retrieval: whether the reference is one of the answer's words."""
    return float(references[0] in re.sub(r"[\n:\"'.,?!{}]", " ", prediction).split())
