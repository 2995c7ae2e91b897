"""`TwinLayer` beside its frozen projection, and which projections get one. What it computes: test_families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import each_rank, make_tiny_model, perturb_twins
from families import CORE
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from focus_peft import FocusConfig
from focus_peft.frozen.current_pass import Pass, current_pass
from focus_peft.frozen.projections import find_projections
from focus_peft.layer import TwinLayer


WIDTH, OUT = 12, 20

PROJECTIONS: dict[str, Any] = {
    "linear": lambda: nn.Linear(WIDTH, OUT),
    "linear without bias": lambda: nn.Linear(WIDTH, OUT, bias=False),
    "Conv1D": lambda: Conv1D(OUT, WIDTH),
    "fused": lambda: nn.Linear(WIDTH, 3 * WIDTH),
    "narrowing": lambda: nn.Linear(WIDTH, 5),
}


def make_layer(kind: str = "linear", r: int | None = None) -> TwinLayer:
    return TwinLayer(PROJECTIONS[kind](), "default", FocusConfig(r=r))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_a_full_twin_is_a_copy_that_shares_no_storage(kind: str) -> None:
    layer = make_layer(kind)
    twin, base = layer.focus_twin["default"], layer.base_layer
    assert type(twin) is type(base)
    for mine, frozen in zip(twin.parameters(), base.parameters(), strict=True):
        assert torch.equal(mine, frozen) and mine.data_ptr() != frozen.data_ptr()


def test_the_pass_before_is_restored_after_the_context_and_after_an_error() -> None:
    outer, inner = Pass(candidates=3), Pass(candidates=1)
    with outer.running():
        with inner.running():
            assert current_pass.get() is inner
        assert current_pass.get() is outer
    with pytest.raises(KeyError), outer.running():
        raise KeyError
    assert current_pass.get() is None


@each_rank
def test_a_disabled_layer_is_its_frozen_projection_at_every_position(r: int | None) -> None:
    layer, x = make_layer(r=r), torch.randn(3, 7, WIDTH)
    perturb_twins(layer)
    layer.enable_adapters(False)
    with Pass(candidates=2).running():
        assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("call", ["merge", "unmerge"])
def test_a_layer_refuses_to_be_merged(call: str) -> None:
    with pytest.raises(NotImplementedError, match="candidate positions only"):
        getattr(make_layer(), call)()


# Which projections get twins

EXPECTED = {
    "gpt2": {"c_attn", "c_proj"},
    "gpt_neox": {"query_key_value", "dense"},
    "phi3": {"qkv_proj", "o_proj"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj"},
}


@pytest.mark.parametrize("family", CORE)
def test_attention_projections_are_found_by_structure(family: str) -> None:
    base = make_tiny_model(family)
    names = EXPECTED.get(family, {"q_proj", "k_proj", "v_proj", "o_proj"})
    found = find_projections(base)
    assert {path.rpartition(".")[2] for path in found} == names
    assert len(found) == len(names) * base.config.num_hidden_layers
    assert not any("mlp" in path for path in found)
    model = get_peft_model(base, FocusConfig())
    assert model.base_model.targeted_module_names == found
    wrapped = [name for name, module in model.get_base_model().named_modules() if isinstance(module, TwinLayer)]
    assert wrapped == found


def test_a_fused_projection_of_another_name_is_found_too() -> None:
    class OddAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.Wqkv = nn.Linear(WIDTH, 3 * WIDTH)
            self.out_proj = nn.Linear(WIDTH, WIDTH)
            self.q_norm = nn.LayerNorm(WIDTH)
            self.rotary = nn.Linear(WIDTH, WIDTH)

    model = nn.Module()
    model.attention, model.mlp = OddAttention(), nn.Linear(WIDTH, WIDTH)
    assert find_projections(model) == ["attention.Wqkv", "attention.out_proj"]
