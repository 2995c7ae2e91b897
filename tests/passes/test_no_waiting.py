"""Nothing that a GPU computes is waited for while the model reads: neither within its layers nor around them.

The model is put on the meta device. Like a GPU it is another device than the CPU, and whatever asks it for a value
(`item`, `tolist`, `nonzero`, a copy to the CPU) fails there at once.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import each_decoding, make_focus_model, random_ids
from peft import PeftModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer

from focus_peft.decoding.cache import FocusCache


FAMILIES = ["llama", "gemma3", "bloom"]


class Crossings(TorchDispatchMode):
    """Operations on tensors of both devices, and those that need a value, while one of the layers runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.layers = 0
        self.depth = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not self.depth and _is_asked_by_transformers():
            return True  # whether a chunk's own mask hides nothing, once in a pass, before the layers
        result = func(*args, **(kwargs or {}))
        tensors = [
            leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor) and leaf.dim()
        ]
        needs_value = func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if self.depth and (needs_value or len({tensor.device for tensor in tensors}) > 1):
            self.found.append(str(func))
        return result


def _is_asked_by_transformers() -> bool:
    """Whether it is transformers' making of masks that asks for a value."""
    frames = (frame for frame, _ in traceback.walk_stack(None))
    return any(frame.f_code.co_filename.endswith("masking_utils.py") for frame in frames)


@contextmanager
def crossings(model: nn.Module) -> Iterator[Crossings]:
    """Within the context, what happens in the layers of a model is watched."""
    watched = Crossings()

    def change(by: int, *_: Any) -> None:
        watched.depth += by
        watched.layers += by == 1

    handles = []
    for layer in (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)):
        handles.append(layer.register_forward_pre_hook(functools.partial(change, 1)))
        handles.append(layer.register_forward_hook(functools.partial(change, -1)))
    try:
        with watched:
            yield watched
    finally:
        for handle in handles:
            handle.remove()


def model_elsewhere(family: str, **fields: Any) -> PeftModel:
    """A model whose weights are on the meta device, past the check that there are some."""
    model = make_focus_model(family, torch.float32, **fields).to("meta")
    tuner = model.base_model
    tuner._checked.add(tuner._way)
    return model


def read_and_go_on(model: PeftModel, rows: list[torch.Tensor], steps: int = 10) -> None:
    """Read rows, and further tokens one by one until windows spill again."""
    tuner = model.base_model
    cache = FocusCache(tuner.reader, tuner.settings(), len(rows))
    logits = cache.read([row.tolist() for row in rows], 1)
    assert logits.device.type == "meta"
    for step in range(steps):
        cache.read([[5 + step + number] for number in range(len(rows))], 1)
    assert len(cache.chunks) > 2


ROWS = {"one": [random_ids(45)], "ragged": [random_ids(45), random_ids(30, 1), random_ids(27, 2)]}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@each_decoding
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_waits_for_nothing(family: str, decoding: str, rows: list[torch.Tensor]) -> None:
    model = model_elsewhere(family, decoding=decoding)
    with crossings(model) as watched:
        read_and_go_on(model, rows)
    assert watched.layers
    assert not watched.found
