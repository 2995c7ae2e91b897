"""All modules of a model, fast: every pass looks at them several times."""

from __future__ import annotations

from torch import nn


def every_module(model: nn.Module) -> list[nn.Module]:
    """`list(model.modules())`, in a tenth of the time: without a generator within a generator for each level."""
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting += [child for child in reversed(module._modules.values()) if child is not None]
    return list(found)
