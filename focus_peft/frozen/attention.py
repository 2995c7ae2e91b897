"""Attention implementations: which one runs the passes that need a mask of their own.

Chunks are causal sequences of full length, so the model's own implementation reads them, whatever it is: that is
nearly all of the work. The chunk pass of the prompts and the local pass, a few tokens each, see a cache through a mask
that only eager and sdpa attention take. For these, a model with FlashAttention, FlexAttention or a kernel from the Hub
is switched for the time of the pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .attention_record import RECORDING, AttentionRecord, record_of_pass
from .grouped_attention import GROUPED
from .modules import every_module


# Implementations that take a 4D mask of floats
MASKED = (None, "eager", "sdpa")


def is_switched(implementation: str | None) -> bool:
    """Whether an implementation reads chunks but not what has a mask of its own."""
    if implementation in MASKED or implementation is None or implementation.startswith("paged|"):
        return False
    return "flash" in implementation or implementation == "flex_attention"


def masked_implementation(model: PreTrainedModel) -> str:
    """What stands in for a model's implementation where there is a mask: sdpa if it computes the same, else eager."""
    config = model.config
    # sdpa has neither soft-capping nor attention sinks; models that need them do not always say so
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "sdpa" if model._supports_sdpa and not capped else "eager"


def check_attention(model: PreTrainedModel) -> None:
    """Raise a ValueError if the attention implementation of a model can neither take a mask nor be switched."""
    implementation = getattr(model.config, "_attn_implementation", None)
    if implementation in MASKED:
        return
    if not is_switched(implementation):
        raise ValueError(
            f"`attn_implementation` is {implementation!r}, of which it is not known how it treats the mask of a "
            "candidate; load "
            'the model with `attn_implementation="sdpa"`, "eager", "flash_attention_2" or "flex_attention".'
        )
    if not type(model)._can_set_attn_implementation():
        raise ValueError(
            f"`attn_implementation` is {implementation!r}, which cannot express the mask of a candidate, and "
            f"{type(model).__name__} cannot be switched to another one while it runs; load the model with "
            '`attn_implementation="sdpa"` or "eager".'
        )


@contextlib.contextmanager
def taking_masks(
    model: PreTrainedModel,
    grouped: bool = False,
    record: AttentionRecord | None = None,
    modules: Sequence[nn.Module] | None = None,
) -> Iterator[None]:
    """Within the context, the attention of the model takes 4D masks; with `grouped`, sdpa attention is `grouped_sdpa`.

    With `record`, which `exchanges_attention` must allow, its weights are noted. `modules` are all of the model's,
    where they are known.
    """
    before: list[tuple[Any, Any]] = []
    # layers look their implementation up in the configuration whenever they run
    configs = (vars(module).get("config") for module in (every_module(model) if modules is None else modules))
    for config in {id(config): config for config in configs if config is not None}.values():
        name = getattr(config, "_attn_implementation", None)
        taking = masked_implementation(model) if is_switched(name) else name
        if grouped and taking == "sdpa":
            taking = GROUPED
        if record is not None and name != RECORDING:
            record.implementations[id(config)] = taking
            taking = RECORDING
        if taking != name:
            before.append((config, name))
            config._attn_implementation = taking
    token = None if record is None else record_of_pass.set(record)
    try:
        yield
    finally:
        if token is not None:
            record_of_pass.reset(token)
        for config, name in before:
            config._attn_implementation = name
