"""Passes of the base model behind keys and values that a baseline keeps by itself."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from ...frozen.compat import CACHE
from ...kv.store import LayerStates


def run(
    base: Any, ids: list[int], position: int, past: list[LayerStates], keep: int
) -> tuple[torch.Tensor, list[LayerStates]]:
    """One pass of the base model behind cached keys and values: (logits of the last `keep` tokens, cache with the new
    ones).
    """
    cache = DynamicCache()
    for number, (keys, values) in enumerate(past):
        cache.update(keys, values, number)
    new = torch.tensor([ids], device=base.device)
    held = past[0][0].shape[2] if past else 0
    output = base(
        new,
        attention_mask=new.new_ones(1, held + len(ids)),
        position_ids=torch.arange(position, position + len(ids), device=base.device)[None],
        use_cache=True,
        logits_to_keep=keep,
        **{CACHE: cache},
    )
    layers: list[Any] = cache.layers
    return output.logits[0], [(layer.keys, layer.values) for layer in layers]


def joined(read: list[list[LayerStates]]) -> list[LayerStates]:
    """Several caches one behind the other."""
    return [
        (torch.cat([keys for keys, _ in states], dim=2), torch.cat([values for _, values in states], dim=2))
        for states in zip(*read)
    ]
