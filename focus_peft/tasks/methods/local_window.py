"""Truncation: the base model reads the local window alone."""

from __future__ import annotations

import torch

from ...passes.chunking import with_bos
from .base import Method, token_losses
from .label_blocks import LabelBlock, label_blocks


class LocalWindow(Method):
    """Truncation: the base model reads the tokens that the adapter's local window holds, and nothing before them.

    BOS goes before them where the adapter would put it (`add_bos`).
    """

    def answer(self, ids: list[int], new_tokens: int) -> list[int]:
        start = max(0, len(ids) - self.settings.sizes.local)
        return self._generate(self.base, self.read(ids, start), new_tokens)

    def label_losses(self, ids: list[int], labels: int) -> torch.Tensor:
        found = []
        for block in self.blocks(len(ids), labels):
            read = self._tensor(self.read(ids[: block.first], block.start) + ids[block.first : block.end - 1])
            mask = torch.ones_like(read)
            output = self.base(read, attention_mask=mask, use_cache=False, logits_to_keep=block.end - block.first)
            found.append(token_losses(output.logits[0], ids[block.first : block.end]))
        return torch.cat(found)

    def read(self, ids: list[int], start: int) -> list[int]:
        """What the base model reads instead of `ids`, whose local window starts at `start`."""
        return with_bos(ids[start:], self.settings.bos if start else None)

    def blocks(self, tokens: int, labels: int) -> list[LabelBlock]:
        """Labels that are predicted in one pass."""
        return label_blocks(tokens, labels, self.settings.sizes)
