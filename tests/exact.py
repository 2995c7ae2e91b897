"""
Float64 all the way through.

Transformers computes norms, rotary tables, the softmax of eager attention and the routers of experts in float32,
whatever the model's type. Here a float64 model computes them in float64, so that what is equal on paper is equal to
about 1e-12, and a test can tell rounding from a mistake.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_layers import GradientCheckpointingLayer


class InFloat64(TorchFunctionMode):
    """Within the context, whoever asks torch for float32 gets float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        # most calls name no type, and all pass here: nothing is copied for them
        for argument in args:
            if argument is torch.float32:
                args = tuple(torch.float64 if value is torch.float32 else value for value in args)
                break
        if not kwargs:
            return func(*args)
        for argument in kwargs.values():
            if argument is torch.float32:
                kwargs = {name: torch.float64 if v is torch.float32 else v for name, v in kwargs.items()}
                break
        return func(*args, **kwargs)


def make_exact(model: nn.Module) -> None:
    """Let the layers of a float64 model, and the norms and rotary tables outside of them, compute in float64.

    Each is given a subclass of its own class, of the same name (models are recognized by the names of their modules),
    whose `forward` has the same signature. So copies are exact too, and so is a layer that a checkpoint runs again.
    """
    inside: set[nn.Module] = set()
    for module in list(model.modules()):
        if isinstance(getattr(module, "embed_positions", None), torch.Tensor):
            module.embed_positions = _exact_table(module)
        if module in inside:
            continue
        name = type(module).__name__
        if isinstance(module, GradientCheckpointingLayer) or "Rotary" in name or "Norm" in name:
            inside.update(module.modules())
            module.__class__ = type(name, (type(module),), {"forward": _in_float64(type(module).forward)})


def _exact_table(module: nn.Module) -> torch.Tensor:
    """The table of rotations of GPT-J and CodeGen, which was computed in float32."""
    make_table = vars(sys.modules[type(module).__module__])["create_sinusoidal_positions"]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # what integers are divided in
    try:
        with InFloat64():
            return make_table(*module.embed_positions.shape)
    finally:
        torch.set_default_dtype(default)


def _in_float64(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def exact(*args: Any, **kwargs: Any) -> Any:
        with InFloat64():
            return forward(*args, **kwargs)

    return exact
