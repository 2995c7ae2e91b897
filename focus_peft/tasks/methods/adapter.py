"""The adapter itself, as a method to read with."""

from __future__ import annotations

from typing import Any

import torch

from ...decoding.cache_type import cache_type
from .base import AT_ONCE, Method, token_losses


class Adapter(Method):
    """The adapter itself, as `model.generate` reads."""

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        return self.refusal_for_room(tokens, new_tokens)

    def answer(self, ids: list[int], new_tokens: int) -> list[int]:
        return self._generate(self.model, ids, new_tokens, progress=False, **self.overrides)

    def label_losses(self, ids: list[int], labels: int) -> torch.Tensor:
        if labels > AT_ONCE and len(ids) - 1 > self.settings.sizes.local:
            return self._losses_in_turn(ids, labels)
        logits = self.model(self._tensor(ids[:-1]), logits_to_keep=labels, **self.overrides).logits[0]
        return token_losses(logits, ids[-labels:])

    def _losses_in_turn(self, ids: list[int], labels: int) -> torch.Tensor:
        """What `forward` computes, with the logits of a few labels at a time. Every chunk is still read once."""
        reason = self.refusal(len(ids), labels)
        if reason is not None:
            raise ValueError(reason)
        cache = cache_type(self.settings)(self.model.base_model.reader, self.settings, 1)
        found, read = [], 0
        for first in range(len(ids) - labels, len(ids), AT_ONCE):
            end = min(len(ids), first + AT_ONCE)
            logits: Any = cache.read([ids[read : end - 1]], end - first)
            found.append(token_losses(logits[0], ids[first:end]))
            read = end - 1
        return torch.cat(found)
