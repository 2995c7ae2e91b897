"""Other adapters of PEFT on the same model: beneath the twins they are part of the frozen model, above them they are
refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import IDS, each_rank, logits_of, make_focus_model, make_tiny_model, perturb_twins, small_config
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from refusal import refusal
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from focus_peft.layer import TwinLayer


# PEFT says that a model is wrapped a second time
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to modify a model:UserWarning")

PROJECTIONS: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
LORA = LoraConfig(r=4, **PROJECTIONS)
OTHERS: dict[str, Any] = {
    "lora": LORA,
    "lora of everything": LoraConfig(r=4, target_modules=["q_proj", "up_proj", "embed_tokens", "lm_head"]),
    "lora with dropout and bias": LoraConfig(r=4, lora_dropout=0.5, lora_bias=True, **PROJECTIONS),
    "dora": LoraConfig(r=4, use_dora=True, **PROJECTIONS),
    "loha": LoHaConfig(r=4, **PROJECTIONS),
    "ia3": IA3Config(feedforward_modules=[], **PROJECTIONS),
    "vera": VeraConfig(r=4, **PROJECTIONS),
    "oft": OFTConfig(r=0, oft_block_size=4, **PROJECTIONS),
}


def with_other(config: Any = LORA, family: str = "llama", name: str = "default") -> PeftModel:
    """A tiny model with another adapter, whose weights are random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(make_tiny_model(family), copy.deepcopy(config), adapter_name=name)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if f".{name}" in path:
                weight.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype) * 0.2)
    return model.eval()


def wrapped(base: nn.Module, r: int | None = None, name: str = "default") -> PeftModel:
    return get_peft_model(base, small_config(r=r), adapter_name=name).eval()


def trainable(model: nn.Module) -> list[str]:
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


# Beneath


@each_rank
@pytest.mark.parametrize("kind", OTHERS)
def test_untrained_twins_over_another_adapter_are_those_over_the_merged_one(kind: str, r: int | None) -> None:
    family = "qwen2" if "bias" in kind else "llama"
    other = with_other(OTHERS[kind], family)
    plain = logits_of(other)
    assert not torch.allclose(plain, logits_of(make_tiny_model(family)), atol=1e-3)
    expected = logits_of(wrapped(copy.deepcopy(other).merge_and_unload(), r))
    model = wrapped(other.get_base_model(), r)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-4 if kind in ("vera", "oft") else 1e-7)
    assert trainable(model) == [name for name, _ in model.named_parameters() if ".focus_" in name]
    with model.disable_adapter():
        assert torch.equal(logits_of(model), plain)
    assert trainable(model) == [name for name, _ in model.named_parameters() if ".focus_" in name]


@each_rank
def test_twins_of_transposed_projections_start_as_both_together(r: int | None) -> None:
    config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    other = with_other(config, "gpt2")
    expected = logits_of(wrapped(copy.deepcopy(other).merge_and_unload(), r))
    torch.testing.assert_close(logits_of(wrapped(other.get_base_model(), r)), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["default", "reader"])
def test_the_adapter_beneath_is_frozen_unsaved_and_given_back(name: str, tmp_path: Path) -> None:
    other = with_other()
    weights = {path: weight.clone() for path, weight in other.named_parameters() if "lora_" in path}
    plain, modules = logits_of(other), dict(other.get_base_model().named_modules())
    model = wrapped(other.get_base_model(), 2, name).train()
    assert list(model.peft_config) == [name] and list(other.peft_config) == ["default"]
    model.set_adapter(name)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    found = dict(other.named_parameters())
    moved = {path.replace(".lora_", ".base_layer.lora_"): weight for path, weight in weights.items()}
    assert all(torch.equal(found[path], weight) and found[path].grad is None for path, weight in moved.items())

    model.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved and all(".focus_" in path for path in saved)
    loaded = PeftModel.from_pretrained(with_other().get_base_model(), folder, is_trainable=True).eval()
    torch.testing.assert_close(logits_of(loaded), logits_of(model.eval()), rtol=0, atol=1e-9)
    assert all(".focus_" in path for path in trainable(loaded))
    model.get_model_status()

    model.add_adapter("more", small_config(r=2))
    model.delete_adapter(name)
    assert all(torch.equal(dict(other.named_parameters())[path], weight) for path, weight in moved.items())
    base = model.unload()
    assert dict(base.named_modules()) == modules
    assert torch.equal(logits_of(other), plain) and list(base.peft_config) == ["default"]
    assert torch.equal(logits_of(other.merge_and_unload()), logits_of(with_other().merge_and_unload()))


def test_an_adapter_of_half_precision_beneath_stays_as_it_is() -> None:
    config = copy.deepcopy(LORA)
    base = make_tiny_model(dtype=torch.bfloat16)
    other = get_peft_model(base, config, autocast_adapter_dtype=False)
    model = wrapped(other.get_base_model())
    types = {name: weight.dtype for name, weight in model.named_parameters() if "lora_" in name or "focus_" in name}
    assert {dtype for name, dtype in types.items() if "lora_" in name} == {torch.bfloat16}
    assert {dtype for name, dtype in types.items() if "focus_" in name} == {torch.float32}


def test_disabling_the_adapter_beneath_by_its_own_wrapper_leaves_the_plain_model() -> None:
    other = with_other()
    model = wrapped(other.get_base_model())
    perturb_twins(model)
    before = logits_of(model)
    with other.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(make_tiny_model()))
    assert torch.equal(logits_of(model), before)


def test_a_projection_that_is_not_linear_has_low_rank_twins_only() -> None:
    other = with_other()
    layer = other.get_base_model().model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda module, inputs, output: output.tanh())
    with refusal("`r=16`", "linear"):
        wrapped(other.get_base_model())
    other = with_other()
    other.get_base_model().model.layers[0].self_attn.q_proj.register_forward_hook(lambda m, i, output: output.tanh())
    assert torch.isfinite(logits_of(wrapped(other.get_base_model(), r=2))).all()


def test_a_wrapped_model_says_what_to_give_instead() -> None:
    with refusal("`model`", "`model.get_base_model()`", "`model.merge_and_unload()`"):
        wrapped(with_other())
    with refusal("`model`", "`model.add_adapter(name, FocusConfig(…))`"):
        wrapped(make_focus_model())
    prompted = get_peft_model(make_tiny_model(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with refusal("`model`", "virtual tokens"):
        wrapped(prompted)


@pytest.mark.parametrize("field", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [5, 6]}], ids=str)
def test_trained_copies_of_modules_must_be_merged_first(field: dict[str, Any]) -> None:
    other = with_other(LoraConfig(r=4, **PROJECTIONS, **field))
    with refusal("`model`", "`merge_and_unload()`"):
        wrapped(other.get_base_model())
    assert list(other.peft_config) == list(other.get_base_model().peft_config) == ["default"]
    assert torch.isfinite(logits_of(wrapped(other.merge_and_unload()))).all()


def test_a_refused_focus_adapter_leaves_the_other_one() -> None:
    other = with_other()
    before = logits_of(other)
    with refusal("`chunk_size`"):
        get_peft_model(other.get_base_model(), small_config(chunk_size=1000))
    with refusal("nothing"):
        get_peft_model(other.get_base_model(), small_config(target_modules=["nothing"]))
    assert list(other.get_base_model().peft_config) == ["default"]
    assert torch.equal(logits_of(other), before)


# Above


ABOVE: dict[str, Callable[[PeftModel], Any]] = {
    "get_peft_model": lambda model: get_peft_model(model, LORA),
    "get_peft_model with another name": lambda model: get_peft_model(model, LORA, adapter_name="lora"),
    "get_peft_model of the base": lambda model: get_peft_model(model.get_base_model(), LORA),
    "mixed": lambda model: get_peft_model(model, LORA, mixed=True),
    "inject": lambda model: inject_adapter_in_model(LORA, model.get_base_model()),
    "add_adapter": lambda model: model.add_adapter("lora", LORA),
    "ia3": lambda model: get_peft_model(model, OTHERS["ia3"]),
}


@pytest.mark.parametrize("way", ABOVE)
def test_another_tuner_above_is_refused_and_leaves_the_model_alone(way: str) -> None:
    model = make_focus_model()
    before, modules = logits_of(model), dict(model.named_modules())
    with pytest.raises(ValueError) as caught:
        ABOVE[way](model)
    assert "focus adapter" in str(caught.value) or "different peft types" in str(caught.value)
    assert list(model.peft_config) == ["default"] and dict(model.named_modules()) == modules
    assert torch.equal(logits_of(model), before)


def test_loading_another_tuner_above_is_refused(tmp_path: Path) -> None:
    with_other().save_pretrained(tmp_path)
    model = make_focus_model()
    with refusal("`peft_config`", "LoraConfig", "`get_base_model()`"):
        PeftModel.from_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="different peft types"):
        model.load_adapter(tmp_path, adapter_name="lora")


@pytest.mark.parametrize(
    "change",
    [
        lambda other: other.add_adapter("more", LoraConfig(r=2, **PROJECTIONS)),
        lambda other: other.unload(),
        lambda other: get_peft_model(other.get_base_model(), AdaptionPromptConfig(adapter_len=2, adapter_layers=1)),
    ],
    ids=["an adapter is added", "the one beneath is taken off", "an adaption prompt"],
)
def test_what_is_put_around_twins_behind_their_back_is_refused_at_the_next_use(
    change: Callable[[PeftModel], Any],
) -> None:
    other = with_other()
    model = wrapped(other.get_base_model())
    logits_of(model)
    change(other)
    for call in (logits_of, lambda model: model.generate(IDS, max_new_tokens=2), lambda model: model.encode(IDS)):
        with refusal("twin", "get_peft_model"):
            call(model)


class Own(nn.Module):
    """Of a module without a package."""


def test_a_module_in_the_place_of_a_twin_is_named() -> None:
    model = make_focus_model()
    model.get_base_model().model.layers[0].self_attn.q_proj = Own()
    with refusal("twin", f"is a {__name__}.Own"):
        model(IDS)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_before_a_focus_model_are_refused(kind: Any) -> None:
    model = make_focus_model(dtype=torch.float32)
    prompted = get_peft_model(model, kind(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with refusal("virtual tokens"):
        prompted.generate(input_ids=IDS, max_new_tokens=2)
    with refusal():
        prompted(IDS)
    with refusal():
        prompted(IDS, labels=IDS)
    assert isinstance(model.get_base_model(), PreTrainedModel)
    assert any(isinstance(module, TwinLayer) for module in model.modules())
