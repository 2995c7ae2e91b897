"""Attention of grouped queries without copies of the keys, for the passes that read few tokens behind many.

With a mask and more than one token, transformers' sdpa attention repeats keys and values once for each query head of a
group. A streaming step reads every chunk's keys for two tokens, so these copies would be most of its time. Here the
queries of a group stand side by side as tokens of one head.

A pass of many tokens, such as the local window of exact decoding, is masked and so not known to be causal; half of the
scores would be computed to be hidden. Where every token sees all candidates and what stands before it, attention is
told that it is causal, with a query that nobody looks at for each candidate. Elsewhere queries go in blocks, each of
which looks no further than the last key that it may see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .attention_record import exchanges_attention
from .current_pass import Block, current_pass


GROUPED = "focus_peft_grouped_sdpa"
# Above so many queries in a head, the copies are a small part
MOST_QUERIES = 1024
# Queries in a block
BLOCK = 256
# What some models ask of attention besides
SPECIAL = ("position_bias", "softcap", "s_aux", "cache")


def grouped_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' sdpa attention: `query` is (rows, heads, tokens, head_dim), `key` and `value` (rows, kv_heads,
    keys, head_dim).
    """
    rows, heads, tokens, _ = query.shape
    groups = heads // key.shape[1]
    masked = attention_mask is not None and attention_mask.dim() == 4 and attention_mask.shape[1] == 1
    special = dropout or any(kwargs.get(name) is not None for name in SPECIAL)
    running = current_pass.get()
    shape = None if running is None else running.shape
    if masked and shape is not None and not special and (groups == 1 or groups * tokens > MOST_QUERIES):
        assert attention_mask is not None
        if isinstance(shape, int):
            query = nn.functional.pad(query, (0, 0, shape, 0))
            out, _ = sdpa_attention_forward(module, query, key, value, None, dropout, scaling, True)
            return out[:, shape:], None
        parts = [
            sdpa_attention_forward(
                module,
                query[:, :, start:end],
                key[:, :, :stop],
                value[:, :, :stop],
                attention_mask[..., start:end, :stop],
                dropout,
                scaling,
                **kwargs,
            )[0]
            for start, end, stop in shape
        ]
        return torch.cat(parts, dim=1), None
    if not masked or not goes_side_by_side(query, groups, dropout, kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    assert attention_mask is not None
    mask = attention_mask.expand(rows, groups, tokens, -1).reshape(rows, 1, groups * tokens, -1)
    return attend_side_by_side(query, key, value, mask, scaling).flatten(2, 3), None


def goes_side_by_side(query: torch.Tensor, groups: int, dropout: float, kwargs: dict[str, Any]) -> bool:
    """Whether the queries of a group may stand side by side as tokens of one head, and better do."""
    special = dropout or any(kwargs.get(name) is not None for name in SPECIAL)
    return groups > 1 and groups * query.shape[2] <= MOST_QUERIES and not special


def attend_side_by_side(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention, a view (rows, tokens, kv_heads, groups, head_dim). `mask` is (rows, 1, groups * tokens, keys)."""
    rows, _, tokens, dim = query.shape
    side_by_side = query.reshape(rows, key.shape[1], -1, dim)
    out = nn.functional.scaled_dot_product_attention(side_by_side, key, value, attn_mask=mask, scale=scaling)
    return out.unflatten(2, (-1, tokens)).permute(0, 3, 1, 2, 4)


AttentionInterface.register(GROUPED, grouped_sdpa)


def shape_of(visible: torch.Tensor, is_whole_mask: bool) -> list[Block] | int | None:
    """The shape of a pass, as `Pass.shape`, if it has many tokens and no graph is being made.

    Args:
        visible (`torch.BoolTensor` of shape (rows or 1, tokens, keys)): What each token sees.
        is_whole_mask (`bool`): Whether all layers see that; else some see less (sliding windows), or with biases
            (ALiBi).
    """
    tokens, before = visible.shape[1], visible.shape[2] - visible.shape[1]
    if tokens <= BLOCK or torch.is_grad_enabled():
        return None
    causal = is_whole_mask and 0 <= before <= tokens
    causal = causal and bool((visible == torch.ones_like(visible[:1]).tril(before)).all())
    return before if causal else _blocks(visible)


def _blocks(visible: torch.Tensor) -> list[Block]:
    tokens, seen = visible.shape[1], visible.any(0)
    starts = range(0, tokens, BLOCK)
    ends = [min(start + BLOCK, tokens) for start in starts]
    stops = [int(seen[start:end].any(0).nonzero().max()) + 1 for start, end in zip(starts, ends)]
    return list(zip(starts, ends, stops))


def is_grouped(model: PreTrainedModel) -> bool:
    """Whether queries share keys in a model whose attention can be exchanged by name."""
    config = model.config
    heads, shared = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    return exchanges_attention(model) and bool(heads and shared) and heads != shared
