"""Items as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from ..config import IGNORE
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
            items (`Sequence`): Dictionaries with `input_ids`, maybe `labels` (else every token is one), all or none
                `sample_seed`, and maybe `evidence`.

        Returns:
            `input_ids`, `attention_mask` and `labels` (-100 at padding) of shape (batch, tokens), `sample_seeds` of
            shape (batch,), and `evidence` (-100 at padding) of shape (batch, pairs, 2); all int64.
        """
        ids = [torch.as_tensor(item["input_ids"], dtype=torch.int64) for item in items]
        given = [item["input_ids"] if item.get("labels") is None else item["labels"] for item in items]
        labels = [torch.as_tensor(row, dtype=torch.int64) for row in given]
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
