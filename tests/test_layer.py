"""`TwinLayer`: a frozen projection of any kind, and the twin that takes over at candidate positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_tiny_model, perturb_twins
from families import CORE
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from focus_peft import FocusConfig
from focus_peft.frozen.current_pass import Pass, current_pass
from focus_peft.frozen.projections import find_projections
from focus_peft.layer import TwinLayer


WIDTH, OUT, ROWS, TOKENS = 12, 20, 3, 7

PROJECTIONS: dict[str, Any] = {
    "linear": lambda: nn.Linear(WIDTH, OUT),
    "linear without bias": lambda: nn.Linear(WIDTH, OUT, bias=False),
    "Conv1D": lambda: Conv1D(OUT, WIDTH),
    "fused": lambda: nn.Linear(WIDTH, 3 * WIDTH),
    "narrowing": lambda: nn.Linear(WIDTH, 5),
}
RANKS = [None, 4]
each_projection = pytest.mark.parametrize("kind", PROJECTIONS)
each_rank = pytest.mark.parametrize("r", RANKS, ids=["full", "low-rank"])


def make_layer(kind: str = "linear", r: int | None = None, dtype: torch.dtype = torch.float64) -> TwinLayer:
    torch.manual_seed(0)
    base = PROJECTIONS[kind]().to(dtype)
    if getattr(base, "bias", None) is not None:
        nn.init.normal_(base.bias)
    return TwinLayer(base, "default", FocusConfig(r=r))


def make_input(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(ROWS, TOKENS, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(1))


@each_rank
@each_projection
def test_without_candidates_a_layer_is_its_frozen_projection_bit_for_bit(kind: str, r: int | None) -> None:
    layer, x = make_layer(kind, r), make_input()
    perturb_twins(layer)
    assert torch.equal(layer(x), layer.base_layer(x))
    with Pass(candidates=0).running():
        assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("count", [1, 3, TOKENS])
@each_rank
@each_projection
def test_at_the_start_a_candidate_equals_the_ordinary_token(kind: str, r: int | None, count: int) -> None:
    layer, x = make_layer(kind, r), make_input()
    with Pass(candidates=count).running():
        torch.testing.assert_close(layer(x), layer.base_layer(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("count", [1, 3, TOKENS])
@each_rank
@each_projection
def test_only_the_last_positions_go_through_the_twin(kind: str, r: int | None, count: int) -> None:
    layer, x = make_layer(kind, r), make_input()
    perturb_twins(layer, std=1.0)
    frozen = layer.base_layer(x)
    with Pass(candidates=count).running():
        found = layer(x)
    changed = (found - frozen).abs().amax(-1) > 1e-3
    assert changed[:, -count:].all()
    torch.testing.assert_close(found[:, :-count], frozen[:, :-count], rtol=0, atol=1e-14)


@each_projection
def test_a_full_twin_is_an_affine_map_of_its_own(kind: str) -> None:
    layer, x = make_layer(kind), make_input()
    perturb_twins(layer)
    twin = layer.focus_twin["default"]
    weight = twin.weight if isinstance(twin, Conv1D) else twin.weight.T
    expected = x[:, -2:] @ weight + (twin.bias if twin.bias is not None else 0)
    with Pass(candidates=2).running():
        torch.testing.assert_close(layer(x)[:, -2:], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("alpha", [None, 1.0, 12.0])
@each_projection
def test_a_low_rank_twin_adds_a_scaled_delta_to_the_frozen_projection(kind: str, alpha: float | None) -> None:
    torch.manual_seed(0)
    layer = TwinLayer(PROJECTIONS[kind]().double(), "default", FocusConfig(r=4, alpha=alpha))
    perturb_twins(layer)
    x = make_input()
    down, up = layer.focus_A["default"].weight, layer.focus_B["default"].weight
    assert down.shape == (4, WIDTH) and up.shape == (layer.out_features, 4)
    expected = layer.base_layer(x)[:, -2:] + (8 if alpha is None else alpha) / 4 * (x[:, -2:] @ down.T @ up.T)
    with Pass(candidates=2).running():
        torch.testing.assert_close(layer(x)[:, -2:], expected, rtol=0, atol=1e-13)


@each_projection
def test_a_full_twin_is_a_copy_that_shares_no_storage(kind: str) -> None:
    layer = make_layer(kind)
    twin, base = layer.focus_twin["default"], layer.base_layer
    assert type(twin) is type(base)
    for mine, frozen in zip(twin.parameters(), base.parameters(), strict=True):
        assert torch.equal(mine, frozen) and mine.data_ptr() != frozen.data_ptr()


@each_projection
def test_a_low_rank_delta_starts_at_zero_and_can_learn(kind: str) -> None:
    layer = make_layer(kind, 4)
    assert not layer.focus_B["default"].weight.any()
    assert layer.focus_A["default"].weight.std() > 0.1
    with Pass(candidates=1).running():
        layer(make_input()).sum().backward()
    assert layer.focus_B["default"].weight.grad.abs().sum() > 0


@each_rank
@each_projection
def test_the_frozen_projection_never_gets_a_gradient(kind: str, r: int | None) -> None:
    layer = make_layer(kind, r)
    layer.base_layer.requires_grad_(False)
    perturb_twins(layer)
    x = make_input().requires_grad_(True)
    with Pass(candidates=2).running():
        layer(x).square().sum().backward()
    assert all(parameter.grad is None for parameter in layer.base_layer.parameters())
    assert all(parameter.grad is not None for name, parameter in layer.named_parameters() if "focus_" in name)
    assert x.grad is not None and bool((x.grad.abs().sum(-1) > 0).all()), "hidden states pass their gradient on"


@each_rank
@pytest.mark.parametrize("kind", ["linear", "Conv1D"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("adapter_dtype", [torch.float32, None], ids=["float32 adapter", "same adapter"])
def test_results_have_the_type_of_the_base_whatever_the_twins_is(
    kind: str, r: int | None, dtype: torch.dtype, adapter_dtype: torch.dtype | None
) -> None:
    layer, x = make_layer(kind, r, dtype), make_input(dtype)
    if adapter_dtype is not None:
        for name in layer.adapter_layer_names:
            getattr(layer, name).to(adapter_dtype)
    with Pass(candidates=2).running():
        found = layer(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, layer.base_layer(x), rtol=1e-2, atol=1e-2)


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
    layer, x = make_layer(r=r), make_input()
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
