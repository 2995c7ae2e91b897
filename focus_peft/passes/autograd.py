"""Gradients through passes: layers that are run again in the backward pass, and weights that processes share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ..frozen.current_pass import current_pass
from ..frozen.interception import Interceptor, intercept
from ..kv.pass_caches import GraphCache


class CheckpointedLayer(Interceptor):
    """Gradient checkpointing of our own (never reentrant), in a pass with a graph, for layers that have it on.

    The model's own drops the cache. Ours runs a layer again in the pass that it had in the forward pass, in whatever
    thread autograd does so.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running = current_pass.get()
        if running is None or not running.checkpoints or not self.module.gradient_checkpointing:
            return self.original(*args, **kwargs)

        def again(*args: Any, **kwargs: Any) -> Any:
            with running.running():
                return self.original(*args, **kwargs)

        return checkpoint(again, *args, use_reentrant=False, **kwargs)


def layers_of(modules: Sequence[nn.Module]) -> list[GradientCheckpointingLayer]:
    """The layers of a model, in order."""
    return [module for module in modules if isinstance(module, GradientCheckpointingLayer)]


def install_checkpointing(modules: Sequence[nn.Module]) -> None:
    """Let the layers among these modules be checkpointed as `CheckpointedLayer` does."""
    for layer in layers_of(modules):
        intercept(layer, CheckpointedLayer)


def gather_for_backward(cache: GraphCache, modules: Sequence[nn.Module]) -> None:
    """FSDP gathers a layer's weights when a gradient comes to its result; ours come to its keys and values, too."""
    for number, layer in enumerate(layers_of(modules)):
        gather = getattr(layer, "unshard", None)
        for state in cache.new.get(number, ()):
            if gather is not None and state.requires_grad:
                state.register_hook(functools.partial(_call, gather))


def _call(function: Callable[[], Any], gradient: torch.Tensor) -> None:
    function()
