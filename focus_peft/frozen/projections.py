"""Finds the attention projections of a model, by structure."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


# Projections of query, key, value and output, separate or fused, by the names that transformers' models give them
PROJECTIONS = frozenset(
    ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "query", "key", "value", "dense", "c_proj", "q_attn"]
    + ["qkv_proj", "query_key_value", "c_attn", "Wqkv"]  # fused
    # latent attention (MLA); what expands the cached latents, `kv_b_proj`, sees every token at once and has no twin
    + ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa"]
)


def find_projections(model: nn.Module) -> list[str]:
    """The paths of q, k, v and o (or their fused forms): linear children of modules whose class name ends in
    "Attention".

    Raises:
        ValueError: if there are none.
    """
    found = []
    for path, module in model.named_modules():
        if not type(module).__name__.endswith("Attention"):
            continue
        for name, child in module.named_children():
            child = getattr(child, "base_layer", child)
            if name in PROJECTIONS and is_projection(child):
                found.append(f"{path}.{name}")
    if not found:
        raise ValueError(
            f"No attention projection was found in {type(model).__name__}; name the projections that get a twin in "
            "`target_modules`."
        )
    return found


def is_projection(module: nn.Module) -> bool:
    """Whether a twin can be made of a module: a linear layer, quantized or not, or transformers' `Conv1D`."""
    return isinstance(module, (nn.Linear, Conv1D)) or (
        hasattr(module, "in_features") and hasattr(module, "out_features")
    )
