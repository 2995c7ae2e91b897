"""Items as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

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
        longest = max(len(item["input_ids"]) for item in items)
        ids = torch.full((len(items), longest), self.pad_token_id)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORE)
        for row, item in enumerate(items):
            length = len(item["input_ids"])
            ids[row, :length] = torch.as_tensor(item["input_ids"])
            given = item.get("labels")
            labels[row, :length] = torch.as_tensor(item["input_ids"] if given is None else given)
            mask[row, :length] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if "sample_seed" in items[0]:
            batch["sample_seeds"] = torch.tensor([item["sample_seed"] for item in items], dtype=torch.int64)
        pairs = [item.get("evidence", ()) for item in items]
        if any(pairs):
            evidence = torch.full((len(items), max(map(len, pairs)), 2), IGNORE)
            for row, given in enumerate(pairs):
                if given:
                    evidence[row, : len(given)] = torch.tensor(given)
            batch["evidence"] = evidence
        return batch
