"""Quantized base models: twins are made of the dequantized weights, and only they train."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import IDS, each_rank, make_tiny_model, perturb_twins, small_config
from peft import LoraConfig, PeftModel, get_peft_model
from refusal import refusal
from torch import nn
from transformers import PreTrainedModel

from focus_peft import FocusConfig
from focus_peft.frozen.current_pass import Pass
from focus_peft.frozen.weights import is_plain, plain_weight
from focus_peft.layer import TwinLayer


# what importing these libraries warns of is theirs
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao", "ignore::FutureWarning:torchao")


def plain_model() -> PreTrainedModel:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    return make_tiny_model(dtype=torch.float32, weight_std=0.15, **sizes)


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Quantize every linear layer but the head, as the quantizers of transformers do."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                setattr(module, name, make(child))


def bitsandbytes(bits: int) -> PreTrainedModel:
    bnb = pytest.importorskip("bitsandbytes")

    def make(linear: nn.Linear) -> nn.Module:
        sizes, weight = (linear.in_features, linear.out_features), linear.weight.data
        if bits == 4:
            new = bnb.nn.Linear4bit(*sizes, bias=False, quant_type="nf4")
            new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new)
        else:
            new = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(weight, requires_grad=False)
        return new.to("cpu")

    model = plain_model()
    replace_linears(model, make)
    return model


bitsandbytes_4bit = functools.partial(bitsandbytes, 4)


def torchao_with(config: str, **fields: Any) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        quantization = pytest.importorskip("torchao.quantization")
        model = plain_model()
        quantization.quantize_(model.model, getattr(quantization, config)(**fields))
        return model

    return make


def quanto_8bit() -> PreTrainedModel:
    quanto = pytest.importorskip("optimum.quanto")
    model = plain_model()
    quanto.quantize(model.model, weights=quanto.qint8)
    quanto.freeze(model)
    return model


def hqq_4bit() -> PreTrainedModel:
    core = pytest.importorskip("hqq.core.quantize")
    config = core.BaseQuantizeConfig(nbits=4, group_size=64)
    model = plain_model()
    replace_linears(model, lambda linear: core.HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu"))
    return model


class PackedLinear(nn.Module):
    """A linear layer as GPTQ and AWQ keep theirs: packed integers and scales in buffers, and no `weight`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scales = linear.weight.detach().abs().amax(1) / 7
        levels = (linear.weight.detach() / scales[:, None]).round().add(8).to(torch.uint8)
        self.register_buffer("qweight", levels[:, ::2] << 4 | levels[:, 1::2])
        self.register_buffer("scales", scales)
        self.bias = nn.Parameter(torch.linspace(-1, 1, linear.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = torch.stack([self.qweight >> 4, self.qweight & 15], dim=-1).flatten(1).to(x.dtype) - 8
        return x @ (levels * self.scales[:, None]).T.to(x.dtype) + self.bias


def packed() -> PreTrainedModel:
    model = plain_model()
    replace_linears(model, PackedLinear)
    return model


QUANTIZED: dict[str, Callable[[], PreTrainedModel]] = {
    "bitsandbytes 4-bit": bitsandbytes_4bit,
    "bitsandbytes 8-bit": functools.partial(bitsandbytes, 8),
    "torchao int8": torchao_with("Int8WeightOnlyConfig"),
    "torchao float8": torchao_with("Float8WeightOnlyConfig"),
    "quanto int8": quanto_8bit,
    "HQQ 4-bit": hqq_4bit,
    "packed integers": packed,
}
# where a pass of several tokens rounds like passes of one
EXACT = ["bitsandbytes 4-bit", "torchao int8", "quanto int8", "HQQ 4-bit", "packed integers"]
each_quantizer = pytest.mark.parametrize("kind", QUANTIZED)


def wrap(base: PreTrainedModel, **fields: Any) -> PeftModel:
    return get_peft_model(base, small_config(**fields)).eval()


def twins(model: nn.Module) -> list[TwinLayer]:
    return [module for module in model.modules() if isinstance(module, TwinLayer)]


def dequantized(layer: nn.Module) -> torch.Tensor:
    """The weight (out, in) of a linear layer, seen from outside."""
    with torch.no_grad():
        zeros = torch.zeros(1, layer.in_features)
        return (layer(torch.eye(layer.in_features)) - layer(zeros)).T


@each_quantizer
def test_a_full_twin_is_made_of_the_dequantized_weight(kind: str) -> None:
    model = wrap(QUANTIZED[kind]())
    assert len(twins(model)) == 8
    for layer in twins(model):
        assert not is_plain(layer.base_layer), "nothing was quantized"
        twin = layer.focus_twin["default"]
        assert type(twin) is nn.Linear and type(twin.weight) is nn.Parameter
        assert twin.weight.dtype == torch.float32 and twin.weight.requires_grad
        # 8-bit layers round their inputs too
        torch.testing.assert_close(twin.weight, dequantized(layer.base_layer), rtol=1e-2, atol=1e-2)
        assert (twin.bias is None) == (getattr(layer.base_layer, "bias", None) is None)
        if twin.bias is not None:
            assert torch.equal(twin.bias, layer.base_layer.bias)
            assert twin.bias.data_ptr() != layer.base_layer.bias.data_ptr()


@pytest.mark.parametrize("count", [1, 3])
@each_quantizer
def test_at_the_start_a_candidate_of_a_low_rank_twin_is_exactly_the_ordinary_token(kind: str, count: int) -> None:
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in twins(wrap(QUANTIZED[kind](), r=4)):
            width = layer.in_features
            ordinary = layer(x[..., :width])
            with Pass(candidates=count).running():
                assert torch.equal(layer(x[..., :width]), ordinary)


@pytest.mark.parametrize("kind", EXACT)
def test_at_the_start_logits_are_those_of_a_model_with_the_dequantized_weights(kind: str) -> None:
    quantized = QUANTIZED[kind]()
    dense = plain_model()
    for mine, theirs in zip(dense.model.layers, quantized.model.layers, strict=True):
        for path, linear in list(mine.named_modules()):
            if type(linear) is nn.Linear:
                packed_layer = theirs.get_submodule(path)
                linear.weight.data = dequantized(packed_layer).contiguous()
                bias = getattr(packed_layer, "bias", None)
                linear.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    with torch.no_grad():
        found, expected = wrap(quantized)(IDS).logits, wrap(dense)(IDS).logits
    # on CPUs with bfloat16 arithmetic bitsandbytes rounds to it
    tolerance = 0.05 if kind.startswith("bitsandbytes") else 1e-3
    assert (found - expected).norm() / expected.norm() < tolerance


@each_rank
@each_quantizer
def test_gradients_reach_the_twins_and_nothing_else(kind: str, r: int | None) -> None:
    model = wrap(QUANTIZED[kind](), r=r).train()
    assert all(".focus_" in name for name, p in model.named_parameters() if p.requires_grad)
    perturb_twins(model, std=0.02)
    model(IDS, labels=IDS, generator=torch.Generator().manual_seed(0)).loss.backward()
    gradients = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    expected = {name for name, _ in model.named_parameters() if ".focus_" in name}
    # the last layer of a candidate leaves a key and a value; its query and output go nowhere
    unused = {n for n in expected if "layers.1" in n and (".q_proj." in n or ".o_proj." in n)}
    assert expected - unused - {n for n in expected if n.endswith("k_proj.focus_twin.default.bias")} <= gradients
    assert gradients <= expected


@each_quantizer
def test_a_memory_can_be_made_saved_and_asked(kind: str, tmp_path: Path) -> None:
    model = wrap(QUANTIZED[kind]())
    memory = model.encode(IDS)
    found = model.generate(IDS[:, :6], memory=memory, max_new_tokens=4, do_sample=False)
    assert found.shape == (1, 10)
    memory.save(tmp_path / "memory")
    loaded = model.load_memory(tmp_path / "memory")
    assert torch.equal(model.generate(IDS[:, :6], memory=loaded, max_new_tokens=4, do_sample=False), found)


@each_quantizer
def test_a_saved_adapter_computes_the_same_logits_on_a_base_quantized_again(kind: str, tmp_path: Path) -> None:
    model = wrap(QUANTIZED[kind](), r=4)
    perturb_twins(model, std=0.02)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(QUANTIZED[kind](), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_what_a_model_read_is_not_shown_to_one_with_other_packed_weights(tmp_path: Path) -> None:
    model, other = wrap(packed()), packed()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.qweight.add_(1)
    memory = model.encode(IDS)
    with refusal("`memory`", "another model"):
        wrap(other).generate(IDS[:, :6], memory=memory, max_new_tokens=1)


def test_4_bit_weights_that_were_repacked_for_inference_can_be_copied_and_trained() -> None:
    base = bitsandbytes_4bit()
    with torch.no_grad():
        base.eval()(IDS)  # on some CPUs, bitsandbytes repacks weights in evaluation mode, and loses gradients then
    model = wrap(base)  # in evaluation mode too
    expected = wrap(bitsandbytes_4bit())
    for mine, fresh in zip(twins(model), twins(expected), strict=True):
        found, wanted = mine.focus_twin["default"].weight, fresh.focus_twin["default"].weight
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)  # repacking rounds the scales, for good
    assert model.base_model.fingerprint == expected.base_model.fingerprint
    with torch.no_grad():
        model(IDS[:, :5])  # repacked again
    model(IDS, labels=IDS).loss.backward()
    assert sum(p.grad is not None and bool(p.grad.any()) for p in model.parameters()) == 6


def test_training_on_layers_that_lose_gradients_is_refused() -> None:
    model = wrap(torchao_with("Int8DynamicActivationInt8WeightConfig")(), r=4).train()
    with refusal("gradient", "quantized", "inference only"):
        model(IDS, labels=IDS)


def test_a_weight_that_nobody_can_dequantize_is_refused_for_a_full_twin() -> None:
    class Foreign(PackedLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("this kernel needs a GPU")

    layer = Foreign(nn.Linear(8, 8))
    with refusal("Foreign", "this kernel needs a GPU", "`r=16`"):
        TwinLayer(layer, "default", FocusConfig())
    assert TwinLayer(layer, "default", FocusConfig(r=2)).focus_A["default"].weight.requires_grad


def test_float8_weights_are_not_taken_for_plain_numbers() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    assert not is_plain(layer)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_full_twin_over_lora_starts_as_the_dequantized_weight_and_its_delta(bits: int) -> None:
    lora = get_peft_model(bitsandbytes(bits), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    projection: Any = lora.get_base_model().model.layers[0].self_attn.q_proj
    sizes = projection.in_features, projection.out_features
    delta = projection.get_delta_weight("default")
    expected = plain_weight(projection.base_layer, *sizes) + delta
    model = get_peft_model(lora.get_base_model(), small_config()).eval()
    twin: Any = model.get_base_model().model.layers[0].self_attn.q_proj
    torch.testing.assert_close(twin.focus_twin["default"].weight.data, expected.data, rtol=0, atol=0.01)
    assert delta.abs().max() > 0.1
    model(IDS, labels=IDS).loss.backward()
    assert torch.isfinite(model(IDS).logits).all() and twin.focus_twin["default"].weight.grad.any()
