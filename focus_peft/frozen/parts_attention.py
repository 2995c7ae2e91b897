"""Attention of a pass in parts: each part of the tokens looks into keys and values of its own."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface

from .grouped_attention import attend_side_by_side, goes_side_by_side, grouped_sdpa
from .own_attention import own_attention


IN_PARTS = "focus_peft_in_parts"


def attention_in_parts(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention that the pass would use, part by part. `query` is (1, heads, all tokens, dim)."""
    running = cast(Any, module.config).running_pass
    assert running is not None and running.parts is not None
    these = running.parts
    own = own_attention(module, running)
    kind = these.kinds[attention_mask.shape[2] - 1]
    groups = query.shape[1] // key.shape[1]
    joined: torch.Tensor | None = None
    for part, (keys, values) in zip(these.parts, these.states, strict=True):
        queries = part.take(query)
        if own is grouped_sdpa and goes_side_by_side(queries, groups, dropout, kwargs):
            mask = part.mask(kind, query.device, groups)
            output = attend_side_by_side(queries, keys, values, mask, scaling)
        else:
            mask = part.mask(kind, query.device)
            output = own(module, queries, keys, values, mask, dropout=dropout, scaling=scaling, **kwargs)[0]
        if joined is None:
            joined = output.new_empty(1, query.shape[2], query.shape[1], output.shape[-1])
        part.place_in(joined).view(output.shape).copy_(output)
    assert joined is not None
    return joined, None


AttentionInterface.register(IN_PARTS, attention_in_parts)
