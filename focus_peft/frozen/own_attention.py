"""Which of a model's own attention functions computes the attention of a pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .current_pass import Pass
from .grouped_attention import GROUPED


# Implementations that take a 4D mask of floats
MASKED = (None, "eager", "sdpa")


def is_switched(implementation: str | None) -> bool:
    """Whether an implementation reads chunks but not what has a mask of its own."""
    if implementation in MASKED or implementation is None or implementation.startswith("paged|"):
        return False
    return "flash" in implementation or implementation == "flex_attention"


def in_pass(running: Pass, implementation: str | None) -> str | None:
    """The implementation that a pass uses in place of a model's own."""
    name = running.masked if is_switched(implementation) else implementation
    return GROUPED if running.grouped and name == "sdpa" else name


def own_attention(module: nn.Module, running: Pass) -> Callable[..., Any]:
    """The function that computes the attention of a pass in an attention module whose configuration is an
    `AttentionConfig`.
    """
    name = in_pass(running, cast(Any, module.config).own._attn_implementation)
    if name in (None, "eager"):
        return cast(Callable[..., Any], sys.modules[type(module).__module__].eager_attention_forward)
    return cast(Callable[..., Any], ALL_ATTENTION_FUNCTIONS[name])
