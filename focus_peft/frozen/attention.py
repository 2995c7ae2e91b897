"""Attention implementations: which one runs the passes that need a mask of their own.

Chunks are causal sequences of full length, so the model's own implementation reads them, whatever it is: that is
nearly all of the work. The chunk pass of the prompts and the local pass, a few tokens each, see a cache through a mask
that only eager and sdpa attention take. There, the attention modules of a model with FlashAttention, FlexAttention
or a kernel from the Hub look up one of these instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from .current_pass import Pass, current_pass
from .own_attention import MASKED, in_pass, is_switched, own_attention
from .parts_attention import IN_PARTS


# Computes the attention of a pass, and notes its weights
RECORDING = "focus_peft_recording"


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


class AttentionConfig:
    """The configuration of an attention module, which names another implementation while a pass with a mask runs.

    Layers look their implementation up by this name whenever they run. Everything else is the model's own
    configuration, live: what is set here is set there.

    Args:
        config (`PreTrainedConfig`): The model's own.
    """

    def __init__(self, config: Any) -> None:
        object.__setattr__(self, "own", config)

    @property
    def running_pass(self) -> Pass | None:
        """For attention functions, which are registered by name: after a second import they are others' than the
        modules', and would look for passes of their own.
        """
        return current_pass.get()

    @property
    def _attn_implementation(self) -> str | None:
        name = self.own._attn_implementation
        running = current_pass.get()
        if running is None:
            return name
        if running.parts is not None:
            return IN_PARTS
        return RECORDING if running.record is not None else in_pass(running, name)

    def __getattr__(self, name: str) -> Any:
        if name == "own" or name.startswith("__"):  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.own, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.own, name, value)

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        return AttentionConfig, (self.own,)


def install_attention(modules: Iterable[nn.Module]) -> None:
    """Let the attention modules of a model ask for their implementation as `AttentionConfig` does."""
    for module in modules:
        config = vars(module).get("config")
        if isinstance(module, PreTrainedModel) or config is None or isinstance(config, AttentionConfig):
            continue
        if hasattr(config, "_attn_implementation"):
            cast(Any, module).config = AttentionConfig(config)


def uninstall_attention(modules: Iterable[nn.Module]) -> None:
    """Undo `install_attention`."""
    for module in modules:
        config = vars(module).get("config")
        if isinstance(config, AttentionConfig):
            cast(Any, module).config = config.own


def recording_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention that the pass would use, and a note of its weights."""
    running = cast(AttentionConfig, module.config).running_pass
    assert running is not None and running.record is not None
    running.record.add(query, key, attention_mask, **kwargs)
    return own_attention(module, running)(module, query, key, value, attention_mask, *args, **kwargs)


AttentionInterface.register(RECORDING, recording_attention)
