"""The twin projection: a frozen projection whose trainable twin takes over at candidate positions (paper section
3.2).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import gather_params_ctx
from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import FocusConfig
from .frozen.current_pass import current_pass
from .frozen.parts import Parts
from .frozen.weights import computing_type, execution_device, plain_weight_and_bias


class TwinLayer(nn.Module, BaseTunerLayer):
    """A frozen projection and its twins, one for each adapter.

    Args:
        base_layer (`nn.Module`): The frozen projection: `nn.Linear`, transformers' `Conv1D`, or a quantized linear
            layer.
        adapter_name (`str`): Name of the first adapter.
        config (`FocusConfig`): Says whether the twin is a full copy (`r=None`) or low-rank.
    """

    adapter_layer_names = ("focus_twin", "focus_A", "focus_B")
    other_param_names = ("scaling",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: FocusConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.focus_twin = nn.ModuleDict()
        self.focus_A = nn.ModuleDict()
        self.focus_B = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self.in_features, self.out_features = _features(base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: FocusConfig) -> None:
        """Add the twin of another adapter. It starts equal to the frozen projection."""
        if config.r is None:
            self.focus_twin[adapter_name] = _full_copy(self.base_layer, self.in_features, self.out_features)
        else:
            down = nn.Linear(self.in_features, config.r, bias=False)
            up = nn.Linear(config.r, self.out_features, bias=False)
            nn.init.normal_(down.weight, std=self.in_features**-0.5)
            nn.init.zeros_(up.weight)
            self.focus_A[adapter_name], self.focus_B[adapter_name] = down, up
            self.scaling[adapter_name] = config.scaling
            base = self.get_base_layer()
            device, dtype = execution_device(base), computing_type(base)
            if down.weight.device.type != "meta":  # `low_cpu_mem_usage=True`: the weights are still to be loaded
                down.to(device, dtype)
                up.to(device, dtype)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def twins_of(self, adapter_name: str | None = None) -> list[nn.Module]:
        """What the twin of an adapter consists of; without a name, those of all adapters."""
        parts = (part for name in self.adapter_layer_names for part in getattr(self, name).items())
        return [part for adapter, part in parts if adapter_name in (None, adapter)]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Project `x` of shape (rows, tokens, in_features): the twin's result at candidate positions, else the
        frozen's.
        """
        running = current_pass.get()
        count = 0 if running is None else running.candidates
        if count == 0 or self.disable_adapters or not self.active_adapters:
            return self.base_layer(x, *args, **kwargs)
        adapter = self.active_adapters[0]
        assert running is not None
        if running.parts is not None:
            return self._in_parts(running.parts, count, adapter, x, *args, **kwargs)
        candidates = x[..., -count:, :].contiguous()  # `Conv1D` views its input
        if adapter in self.focus_twin:
            twin: Any = self.focus_twin[adapter]
            out = twin(_given_to(twin, candidates)).to(x.dtype)
            if count < x.shape[-2]:
                out = torch.cat([self.base_layer(x[..., :-count, :].contiguous(), *args, **kwargs), out], dim=-2)
            return out
        frozen = self.base_layer(x, *args, **kwargs)
        if adapter not in self.focus_A:
            return frozen
        down: Any = self.focus_A[adapter]
        up = self.focus_B[adapter]
        delta = up(down(_given_to(down, candidates))) * self.scaling[adapter]
        if not torch.is_grad_enabled():  # what the frozen projection made is nobody else's
            frozen[..., -count:, :] += delta.to(frozen.dtype)
            return frozen
        if count == x.shape[-2]:
            return frozen + delta.to(frozen.dtype)
        return torch.cat([frozen[..., :-count, :], frozen[..., -count:, :] + delta.to(frozen.dtype)], dim=-2)

    def _in_parts(
        self, parts: Parts, count: int, adapter: str, x: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The same where all tokens stand in one row (1, tokens, in_features), and no graph is made."""
        out = self.base_layer(x, *args, **kwargs)
        place, candidates = parts.chunks.last(count, out), parts.chunks.last(count, x)
        if adapter in self.focus_twin:
            twin: Any = self.focus_twin[adapter]
            place.copy_(twin(_given_to(twin, candidates).contiguous()))
        elif adapter in self.focus_A:
            down: Any = self.focus_A[adapter]
            up: Any = self.focus_B[adapter]
            if count == 1 and down.weight.device == out.device and down.weight.dtype == out.dtype:  # fewest launches
                inside = nn.functional.linear(candidates, down.weight)
                place.addmm_(inside, up.weight.t(), alpha=self.scaling[adapter])
            else:
                delta = up(down(_given_to(down, candidates)))
                place.add_(delta.to(out.device), alpha=self.scaling[adapter])
        return out

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(MERGE_REFUSAL)

    def unmerge(self) -> None:
        raise NotImplementedError(MERGE_REFUSAL)

    def __repr__(self) -> str:
        return "focus." + super().__repr__()


MERGE_REFUSAL = (
    "A focus adapter cannot be merged into its base model: a twin projection takes over at candidate positions only, "
    "and every other token needs the frozen projection. Use `unload()` to get the base model back."
)


def _given_to(twin: Any, x: torch.Tensor) -> torch.Tensor:
    """`x` where a twin computes, which may be offloaded, and in its type."""
    weight = twin.weight
    return x.to(weight.device if weight.device.type != "meta" else execution_device(twin), weight.dtype)


def _features(layer: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a projection, whatever its kind."""
    if isinstance(layer, Conv1D):
        return cast(int, layer.nx), cast(int, layer.nf)
    return cast(int, layer.in_features), cast(int, layer.out_features)


def _full_copy(layer: nn.Module, in_features: int, out_features: int) -> nn.Module:
    """A trainable copy of a projection; a quantized one is copied from its dequantized weight, one that carries
    another adapter from what both compute together.
    """
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    # Under DeepSpeed ZeRO-3, weights have shape (0,) outside of this context
    with gather_params_ctx(layer.parameters(), modifier_rank=None), align_module_device(base):
        weight, bias = plain_weight_and_bias(layer, in_features, out_features)
        # not a deep copy: what hangs on the frozen layer (quantization, accelerate's hooks) is no part of its twin
        with torch.device("meta"):
            twin: nn.Module
            if isinstance(base, Conv1D):
                twin = Conv1D(out_features, in_features)
            else:
                twin = nn.Linear(in_features, out_features, bias=bias is not None)
        twin.weight = nn.Parameter(weight.detach().clone())
        if bias is not None:
            twin.bias = nn.Parameter(bias.detach().to(weight.device, weight.dtype, copy=True))
        return twin
