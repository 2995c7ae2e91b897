"""What a frozen model computes with at the moment, cheap enough to be looked at in every call: facts that were taken
once hold as long as it is the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel


def computing_kind(model: PreTrainedModel, device: torch.device) -> Hashable:
    """The type of the weights, the attention implementation, and the type that autocast computes in, if it does."""
    autocasts = device.type != "meta" and torch.is_autocast_enabled(device.type)
    autocast = torch.get_autocast_dtype(device.type) if autocasts else None
    return model.dtype, getattr(model.config, "_attn_implementation", None), autocast


def frozen_state(modules: Iterable[nn.Module]) -> Hashable:
    """What changes when frozen weights do: written to in place, exchanged, cast, or with another adapter in them
    switched or merged.

    Weights that accelerate keeps elsewhere (on another device, the disk) are taken to stay as they are.

    Args:
        modules (`Iterable[nn.Module]`): The frozen ones, of which other adapters are a part.
    """
    modules = list(modules)
    weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
    return tuple(map(_mark, weights)), _values(weights), tuple(other_adapters(modules))


def other_adapters(modules: Iterable[nn.Module]) -> Iterator[Hashable]:
    """Of each layer with adapters of another method: which of them are there, switched on, and merged."""
    for module in modules:
        if isinstance(module, BaseTunerLayer) and not is_ours(module):
            scaling = getattr(module, "scaling", {})
            yield (
                bool(module.disable_adapters),
                tuple(module.active_adapters),
                tuple(module.merged_adapters),
                tuple(sorted(scaling.items())) if isinstance(scaling, dict) else (),
            )


def adapters_on(adapted: Sequence[Any]) -> Hashable:
    """Whether the twins are off, and whose they are; and the other adapters in the base.

    Args:
        adapted (`Sequence`): As of `Modules`.
    """
    twin, *others = adapted
    return (bool(twin.disable_adapters), tuple(twin.active_adapters)), tuple(other_adapters(others))


def is_ours(module: nn.Module) -> bool:
    """Whether a module is a `TwinLayer`."""
    names = module.adapter_layer_names if isinstance(module, BaseTunerLayer) else ()
    return any(name.startswith("focus_") for name in names)


def _mark(weight: torch.Tensor) -> Hashable:
    if weight.device.type == "meta":  # accelerate makes a new one after each use
        return tuple(weight.shape), weight.dtype
    version = 0 if weight.is_inference() else weight._version
    address = weight.data_ptr() if _is_plain(weight) and not hasattr(weight, "ds_id") else 0
    return id(weight), version, address, weight.dtype, weight.device


def _values(weights: Iterable[torch.Tensor]) -> tuple[bytes, ...]:
    """A number from the middle of every weight: writing to `weight.data` changes no version."""
    kinds: dict[Any, list[torch.Tensor]] = {}
    for weight in weights:
        if weight.device.type != "meta" and weight.numel() and _is_plain(weight):
            number = weight.detach()[tuple(size // 2 for size in weight.shape)]
            kinds.setdefault((weight.device, weight.dtype), []).append(number)
    stacks = (torch.stack(numbers).cpu() for numbers in kinds.values())
    return tuple(stack.view(torch.uint8).numpy().tobytes() for stack in stacks)


def _is_plain(weight: torch.Tensor) -> bool:
    return type(weight) in (torch.Tensor, nn.Parameter)
