"""How much attention the newest tokens pay to each candidate: what an answer looked at, which chunks to renew or to
read, and how a training loss sees the choice.

Attention functions of transformers give no weights away but the eager one. For the time of a pass, a function that
stands before the model's own computes the weights of the last token once more, which are few.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import PreTrainedModel


class AttentionRecord:
    """The attention of the last tokens of each row to the candidates, added up over layers.

    Args:
        prefix (`int`): Candidates; their keys come first.
        tokens (`int`): How many of the last tokens.
    """

    def __init__(self, prefix: int, tokens: int = 1) -> None:
        self.prefix, self.tokens = prefix, tokens
        self.layers = 0
        self._sum: torch.Tensor | None = None

    @property
    def mean(self) -> torch.Tensor:
        """Over tokens, heads and layers: (rows, `prefix`), each row's sum below 1."""
        assert self._sum is not None
        return self._sum / self.layers

    def add(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any) -> None:
        """Add a layer: `query` (rows, heads, tokens, head_dim), `key` (rows, kv_heads, keys, head_dim)."""
        with torch.no_grad():
            self._add(self._weights(query, key, mask, **kwargs).mean((1, 2, 3)))

    def _add(self, weights: torch.Tensor) -> None:
        self._sum = weights if self._sum is None else self._sum + weights.to(self._sum.device, non_blocking=True)
        self.layers += 1

    def _weights(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Those of a layer, for each head: (rows, kv_heads, group, tokens, `prefix`)."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        last = query[:, :, -self.tokens :].unflatten(1, (key.shape[1], -1)).to(dtype)
        scores = (last @ key.mT.to(dtype)[:, :, None]) * (scaling or query.shape[-1] ** -0.5)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is not None:  # of all heads alike, or (ALiBi) of each
            last_mask = mask[:, :, -self.tokens :, : scores.shape[-1]].to(dtype)
            each = last_mask.shape[1] > 1
            scores = scores + (last_mask.unflatten(1, scores.shape[1:3]) if each else last_mask[:, None])
        if s_aux is not None:  # a sink of each head takes its share
            sinks = s_aux.to(dtype).view(1, key.shape[1], -1, 1, 1).expand(*scores.shape[:4], 1)
            scores = torch.cat([scores, sinks], dim=-1)
        return scores.softmax(-1)[..., : self.prefix]


class LabelRecord(AttentionRecord):
    """The same for each token apart, with a graph, for a training loss: `mean` is (rows, tokens, `prefix`)."""

    def add(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any) -> None:
        self._add(self._weights(query, key, mask, **kwargs).mean((1, 2)))


def exchanges_attention(model: PreTrainedModel) -> bool:
    """Whether the attention of a model can be exchanged by name."""
    attention = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    return bool(attention) and all(
        hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS") and hasattr(module, "config")
        for module in attention
    )


def best_chunks(scores: torch.Tensor, count: int) -> list[int]:
    """The numbers of the `count` chunks with the highest scores (chunks,), ascending; the earlier of two that are
    even.
    """
    return sorted(scores.sort(descending=True, stable=True).indices[:count].tolist())
