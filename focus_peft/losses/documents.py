"""A document of a training batch, and what was drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .sampling import Sample


@dataclass
class Document:
    """One document of a batch.

    Attributes:
        ids (`Sequence[int]`): Its tokens.
        labels (`Sequence[int]`): The label at each place; -100 is ignored.
        sample (`Sample`, *optional*): What was drawn for it. None: nothing could be.
        evidence (`Sequence[tuple[int, int]]`): Pairs of places: of a label, and of a token that tells it.
    """

    ids: Sequence[int]
    labels: Sequence[int]
    sample: Sample | None
    evidence: Sequence[tuple[int, int]] = ()
