"""The weights of frozen layers as plain numbers, however they are kept: quantized, packed, or offloaded by
accelerate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from accelerate.utils import has_offloaded_params
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers.pytorch_utils import Conv1D


# float8 is floating point too, but means nothing without its scales
PLAIN_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_plain(layer: nn.Module) -> bool:
    """Whether a projection's weight is an ordinary tensor of floating-point numbers, so not quantized."""
    return _is_plain(getattr(layer, "weight", None))


def _is_plain(weight: object) -> bool:
    # by exact type: a quantized tensor subclass may say that it is floating point
    return type(weight) in (torch.Tensor, nn.Parameter) and cast(torch.Tensor, weight).dtype in PLAIN_TYPES


def plain_weight_and_bias(
    layer: nn.Module, in_features: int, out_features: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight of a projection, dequantized if it is quantized: (out_features, in_features), or as `Conv1D` keeps
    it; and its bias (out_features,), if it has one. Where it carries another adapter, such as LoRA's, those of both
    together.

    Raises:
        ValueError: if the layer keeps its weight in a form that cannot be turned into numbers, or has none.
    """
    if isinstance(layer, BaseTunerLayer):
        return _weight_and_bias_of_both(layer, in_features)
    return plain_weight(layer, in_features, out_features), getattr(layer, "bias", None)


def plain_weight(layer: nn.Module, in_features: int, out_features: int) -> torch.Tensor:
    """The weight of a projection without other adapters, as `plain_weight_and_bias` gives it."""
    _unpack(layer)
    if is_plain(layer):
        return cast(torch.Tensor, layer.weight)
    with torch.no_grad():
        weight: Any = None
        if hasattr(layer, "weight") or hasattr(layer, "W_q"):  # what PEFT knows to ask: bitsandbytes, torchao, HQQ
            weight = dequantize_module_weight(layer)
            if not _is_plain(weight) and hasattr(weight, "dequantize"):  # optimum-quanto
                weight = weight.dequantize()
        if not _is_plain(weight) or weight.shape != (out_features, in_features):
            weight = _probed_weight(layer, in_features, execution_device(layer), computing_type(layer))
    return weight


def _probed_weight(layer: nn.Module, in_features: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a linear layer by what it does to the unit vectors, whoever quantized it (GPTQ, AWQ, ...)."""
    unit = torch.eye(in_features, device=device, dtype=dtype)
    try:
        return (layer(unit) - layer(torch.zeros_like(unit[:1]))).T.contiguous()
    except (RuntimeError, TypeError, ValueError, ImportError, NotImplementedError) as error:
        raise ValueError(
            f"The weight of a {type(layer).__name__} cannot be dequantized ({type(error).__name__}: {error}), so no "
            "full twin can be made of it; choose a low-rank twin, such as `r=16`."
        ) from error


def _weight_and_bias_of_both(layer: BaseTunerLayer, in_features: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight and the bias of a projection with another adapter's part, by what they do together: every tuner has a
    formula of its own.
    """
    module, base = cast(nn.Module, layer), layer.get_base_layer()
    device, dtype = execution_device(base), computing_type(base)
    some = torch.arange(in_features, device=device).cos().to(dtype)[None]
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()  # its dropout is off
    try:
        with torch.no_grad(), differentiable_weights(module.modules()):
            weight = _probed_weight(module, in_features, device, dtype)
            bias = module(torch.zeros_like(some))
            expected = module(some).float()
            error = (nn.functional.linear(some.float(), weight.float()) + bias.float() - expected).abs().max()
    finally:
        for inner, mode in modes:
            inner.training = mode
    if weight.device.type != "meta" and not error <= 0.05 * expected.abs().max():
        raise ValueError(
            f"A projection with a {type(layer).__name__} of {type(layer).__module__} is no linear one, so no full "
            "twin can start as both together; merge the other adapter first, or choose a low-rank twin, such as "
            "`r=16`."
        )
    has_bias = getattr(base, "bias", None) is not None or (bias.device.type != "meta" and bool(bias.any()))
    return weight.T.contiguous() if isinstance(base, Conv1D) else weight, bias[0] if has_bias else None


def computing_type(layer: nn.Module) -> torch.dtype:
    """The type that a projection computes in, as far as it says so."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    said = [getattr(layer, "compute_dtype", None)]
    said += [tensor.dtype for tensor in (weight, bias) if isinstance(tensor, torch.Tensor)]
    said += [buffer.dtype for buffer in layer.buffers()]  # GPTQ's scales
    return next((dtype for dtype in said if dtype in PLAIN_TYPES), torch.float32)


def execution_device(layer: nn.Module) -> torch.device:
    """Where a layer computes: where its weights are, or where accelerate brings them for the time that it runs."""
    if has_offloaded_params(layer):
        return torch.device(cast(Any, layer._hf_hook).execution_device)
    tensors = (*layer.parameters(), *layer.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


@contextlib.contextmanager
def differentiable_weights(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context, bitsandbytes does not repack 4-bit weights of these modules for the CPU.

    In evaluation mode it does, for good, and into a form that passes no gradient on (a warning is all that it says).
    """
    # not by attribute: asking every module for what it lacks would take longer than the rest of a short pass
    weights = [(module, module._parameters.get("weight")) for module in modules]
    layers = [
        layer for layer, w in weights if w is not None and type(w).__name__ == "Params4bit" and w.device.type == "cpu"
    ]
    modes = [layer.training for layer in layers]
    for layer in layers:
        _unpack(layer)
        layer.training = True
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes):
            layer.training = mode


def _unpack(layer: nn.Module) -> None:
    """Undo bitsandbytes' repacking."""
    if getattr(getattr(getattr(layer, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
        layer.state_dict()  # what is saved is never packed, so this unpacks in place


def stored_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The ordinary tensors that a weight consists of: itself, or the parts of a quantized one."""
    if type(tensor) in (torch.Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    parts = [getattr(tensor, name) for name in names]
    return [inner for part in parts if isinstance(part, torch.Tensor) for inner in stored_tensors(part)]
