"""Checks that documents are long enough to draw spans from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from ..config import IGNORE
from ..losses.sampling import draw_sample, row_generators
from ..passes.ids import real_row
from ..passes.settings import Settings


logger = logging.getLogger(__name__)

# Documents that are checked before training
SAMPLED = 256


def check_documents(rows: Any, settings: Settings) -> None:
    """Check documents before training on them; warn if some have no room for a span, or none for a chunk and a window.

    Args:
        rows (`Sequence[Mapping]`): Documents with `input_ids` and maybe `labels` and `sample_seed`. Those of an
            iterable dataset, which has no length, are not checked.
        settings (`Settings`): As in `draw_sample`.

    Raises:
        ValueError: if no spans can be drawn from any of them.
    """
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__") or not len(rows):
        return
    if not isinstance(rows[0], Mapping) or "input_ids" not in rows[0]:
        has = ", ".join(map(repr, rows[0])) if isinstance(rows[0], Mapping) else type(rows[0]).__name__
        raise ValueError(
            f"A row of `train_dataset` has {has}, but documents are taken as ids in `input_ids`; make them with "
            "`focus_peft.data.prepare`, or train on texts and conversations with `FocusSFTTrainer`."
        )
    order = range(0, len(rows), max(1, len(rows) // SAMPLED))
    without = sum(not _has_spans(rows[index], settings) for index in order)
    if without == len(order) and not any(_has_spans(rows[index], settings) for index in range(len(rows))):
        raise ValueError(
            f"No spans can be drawn from any of the {len(rows)} documents of `train_dataset`: they are too short, or "
            "have no labels behind their first tokens. Give documents that hold a memory, a local window and labels."
        )
    if without:
        logger.warning(
            "%d of %d documents that were looked at have no room for a span of labels: a step on them teaches "
            "nothing. Leave them out, or give them labels behind a memory and a local window.",
            without,
            len(order),
        )
    longest = max(len(real_row(rows[index])) for index in order)
    sizes = settings.sizes
    if longest < sizes.chunk + sizes.local:
        logger.warning(
            "The longest of %d documents has %d tokens, less than `chunk_size` (%d) + `local_size` (%d): training "
            "never shows the adapter a whole chunk before a whole local window. Train on longer documents, or with "
            "smaller sizes.",
            len(order),
            longest,
            sizes.chunk,
            sizes.local,
        )


def _has_spans(row: Any, settings: Settings) -> bool:
    labels = real_row(row, "input_ids" if row.get("labels") is None else "labels")
    seed = row.get("sample_seed")
    seeds = None if seed is None else torch.tensor([int(seed)])
    generator = row_generators(1, None, seeds, False)[0]
    return draw_sample([int(label) != IGNORE for label in labels], settings, generator) is not None
