"""The documents of a training batch: checked, and what was drawn for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..config import IGNORE
from ..passes.ids import check_ids, check_vocabulary, real_tokens
from ..passes.settings import Settings
from .sampling import Sample, draw_sample, least_chunk_size


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


def draw_documents(
    rows: Sequence[Sequence[int]],
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None,
    settings: Settings,
    generators: Sequence[torch.Generator | None],
    distractors: int,
) -> list[Document]:
    """Check the labels of a batch, and draw the spans of each row.

    Args:
        rows (`Sequence[Sequence[int]]`): The real tokens of each row.
        labels (`torch.LongTensor` of shape (rows, tokens)): As given, padding included.
        attention_mask (`torch.Tensor` of shape (rows, tokens), *optional*): 1 at real tokens.
        settings (`Settings`): As in `draw_sample`.
        generators (`Sequence[torch.Generator | None]`): Draw the spans of each row.
        distractors (`int`): How many could stand among the chunks.

    Raises:
        ValueError: if labels are outside the vocabulary, or the spans leave the positions of the model.
    """
    check_ids(labels, "labels")
    targets = real_tokens(labels, attention_mask)
    real = [[target for target in row if target != IGNORE] or [0] for row in targets]
    check_vocabulary(real, settings.facts.vocab_size, "labels")
    settings.check_labels(max(distractors, -(-max(map(len, rows)) // least_chunk_size(settings))))
    return [
        Document(ids, target, draw_sample([label != IGNORE for label in target], settings, generator, distractors))
        for ids, target, generator in zip(rows, targets, generators)
    ]
