"""Items as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from ..config import IGNORE
from ..passes.ids import check_ids, real_row
from .mixture import Item


@dataclass
class DocumentCollator:
    """Pads items on the right.

    Attributes:
        pad_token_id (`int`): Stands at padding. It is masked, so any id of the vocabulary will do. Defaults to 0.
    """

    pad_token_id: int = 0

    def __call__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """
        Args:
            items (`Sequence`): Dictionaries with `input_ids`, maybe `labels` (else every token is one) and
                `attention_mask` (tokens where it is 0 are left out), all or none `sample_seed`, and maybe `evidence`.

        Returns:
            `input_ids`, `attention_mask` and `labels` (-100 at padding) of shape (batch, tokens), `sample_seeds` of
            shape (batch,), and `evidence` (-100 at padding) of shape (batch, pairs, 2); all int64.
        """
        ids = [_whole_numbers(item, "input_ids") for item in items]
        labels = [_whole_numbers(item, "input_ids" if item.get("labels") is None else "labels") for item in items]
        batch = {
            "input_ids": pad_sequence(ids, True, self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True),
            "labels": pad_sequence(labels, True, IGNORE),
        }
        if "sample_seed" in items[0]:
            batch["sample_seeds"] = torch.tensor([item["sample_seed"] for item in items], dtype=torch.int64)
        pairs = [item.get("evidence", ()) for item in items]
        if any(pairs):
            places = [torch.tensor(given, dtype=torch.int64).view(-1, 2) for given in pairs]
            batch["evidence"] = pad_sequence(places, True, IGNORE)
        return batch


def _whole_numbers(item: Item, name: str) -> torch.Tensor:
    """What an item has at its real tokens: (tokens,). Fractions are refused, and not cut off."""
    values = torch.as_tensor(real_row(item, name))
    if values.numel():  # an empty list becomes floats
        check_ids(values, name)
    return values.to(torch.int64)
