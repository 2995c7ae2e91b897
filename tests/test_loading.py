"""Ways to load a base model: offloaded layers, tied embeddings, mixed types, the meta device, `torch.compile`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from conftest import IDS, each_rank, logits_of, make_tiny_model, perturb_twins, small_config
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from refusal import refusal
from torch import nn
from training import assert_same_gradients, gradients_of, seeded
from transformers import AutoModelForCausalLM, PreTrainedModel

from focus_peft import FocusConfig
from focus_peft.kv.store import KeyValueStore
from focus_peft.layer import TwinLayer


def wrap(base: nn.Module, **fields: Any) -> PeftModel:
    torch.manual_seed(0)  # low-rank twins start at random
    model = get_peft_model(base, small_config(**fields)).eval()
    perturb_twins(model)
    return model


def greedy(model: nn.Module, **options: Any) -> torch.Tensor:
    return model.generate(IDS, max_new_tokens=12, do_sample=False, **options)  # spills on the way


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Those of one loss that are not zero."""
    found = gradients_of(model, model(IDS, labels=IDS, generator=seeded(0)).loss)
    return {name: gradient for name, gradient in found.items() if gradient is not None and gradient.any()}


# accelerate's `device_map`


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., PreTrainedModel]:
    """A factory of one base model: in memory, or with some of its layers, or all, on the disk."""

    def make(offloaded: str = "", tied: bool = False) -> PreTrainedModel:
        folder = tmp_path / f"base {tied}"
        if not folder.exists():
            make_tiny_model(dtype=torch.float32, tie_word_embeddings=tied).save_pretrained(folder)
        if not offloaded:
            return AutoModelForCausalLM.from_pretrained(folder)
        names = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
        on_disk = ["model.layers.1"] if offloaded == "some" else names[:3] + names[-1:]
        device_map = {name: "disk" if name in on_disk else "cpu" for name in names}
        base = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "disk")
        if tied:
            try:
                base(IDS[:, :2])
            except KeyError:
                pytest.skip("this version of transformers cannot run a tied head from the disk")
        return base

    return make


OFFLOADED = [("some", False), ("all", False), ("all", True)]
each_offload = pytest.mark.parametrize("offloaded, tied", OFFLOADED, ids=["a layer", "all layers", "all layers, tied"])


@each_rank
@each_offload
def test_a_model_with_layers_on_the_disk_reads_and_trains_like_one_in_memory(
    load: Callable[..., PreTrainedModel], offloaded: str, tied: bool, r: int | None
) -> None:
    base = load(offloaded, tied)
    assert base.model.layers[1].self_attn.q_proj.weight.device.type == "meta"
    model, expected = wrap(base, r=r), wrap(load(tied=tied), r=r)
    for layer in (module for module in model.modules() if isinstance(module, TwinLayer)):
        assert hasattr(layer.base_layer, "_hf_hook"), "the hook stays with the frozen projection"
        twins = [p for name, p in layer.named_parameters() if "focus_" in name]
        assert twins and all(p.device.type == "cpu" and p.requires_grad for p in twins)
        assert not any(hasattr(module, "_hf_hook") for module in layer.modules() if module is not layer.base_layer)
    torch.testing.assert_close(logits_of(model), logits_of(expected), rtol=1e-5, atol=1e-5)
    assert torch.equal(greedy(model), greedy(expected))
    assert_same_gradients(gradients(model.train()), gradients(expected.train()), 1e-4)
    assert base.model.layers[1].self_attn.k_proj.base_layer.weight.device.type == "meta", "still on the disk"


@each_offload
def test_a_memory_fits_a_model_whether_its_layers_are_on_the_disk_or_not(
    load: Callable[..., PreTrainedModel], offloaded: str, tied: bool, tmp_path: Path
) -> None:
    model, expected = wrap(load(offloaded, tied)), wrap(load(tied=tied))
    model.encode(IDS).save(tmp_path / "memory")
    answers = [m.generate(IDS[:, :5], memory=m.load_memory(tmp_path / "memory"), max_new_tokens=4, do_sample=False)
               for m in (model, expected)]  # fmt: skip
    assert torch.equal(*answers)


@each_rank
def test_an_adapter_is_saved_from_and_loaded_into_a_model_on_the_disk(
    load: Callable[..., PreTrainedModel], r: int | None, tmp_path: Path
) -> None:
    model = wrap(load("some"), r=r)
    model.save_pretrained(tmp_path / "adapter")
    in_memory = PeftModel.from_pretrained(load(), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(in_memory), logits_of(model), rtol=1e-5, atol=1e-5)
    # `PeftModel.from_pretrained` itself dispatches again, and fails on every adapter whose base is on CPU and disk
    # alone
    again = get_peft_model(load("some"), FocusConfig.from_pretrained(tmp_path / "adapter")).eval()
    set_peft_model_state_dict(again, load_peft_weights(str(tmp_path / "adapter")))
    torch.testing.assert_close(logits_of(again), logits_of(model), rtol=1e-5, atol=1e-5)


def offload_the_whole(model: PeftModel, folder: Path) -> None:
    cpu_offload(model)


def offload_the_base(model: PeftModel, folder: Path) -> None:
    cpu_offload(model.get_base_model())


def dispatch(model: PeftModel, folder: Path) -> None:
    inner = "base_model.model.model."
    names = [inner + name for name in ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")]
    device_map = dict.fromkeys([*names, "base_model.model.lm_head"], "cpu") | {inner + "layers.1": "disk"}
    dispatch_model(model, device_map, main_device="cpu", offload_dir=folder)


@pytest.mark.parametrize("offload", [offload_the_whole, offload_the_base, dispatch])
@pytest.mark.parametrize(("was_used", "r"), [(True, None), (False, 4)])
def test_a_model_that_is_offloaded_after_it_was_wrapped_reads_as_before(
    offload: Callable[[PeftModel, Path], None], was_used: bool, r: int | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = wrap(make_tiny_model(dtype=torch.float32), r=r)
    plain = copy.deepcopy(model)
    expected, tokens, memory = logits_of(plain), greedy(plain), plain.encode(IDS)
    answer = plain(IDS[:, :5], memory=memory).logits
    if was_used:
        model.encode(IDS)
    offload(model, tmp_path)
    twin = next(p for name, p in model.named_parameters() if "layers.1" in name and "focus_" in name)
    assert twin.device.type == "meta"
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(greedy(model), tokens)
    assert torch.equal(model(IDS[:, :5], memory=memory).logits, answer), "a memory of the model before"
    assert torch.equal(model(IDS[:, :5], memory=model.encode(IDS)).logits, answer)


# Tied embeddings


@each_rank
def test_a_model_with_tied_embeddings_is_wrapped_saved_and_loaded(r: int | None, tmp_path: Path) -> None:
    base = make_tiny_model(tie_word_embeddings=True)
    model = wrap(base, r=r)
    assert base.lm_head.weight is base.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_tiny_model(tie_word_embeddings=True), tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=1e-9)
    assert not any("embed" in name or "head" in name for name in load_peft_weights(str(tmp_path)))
    gradients(model.train())
    assert base.lm_head.weight.grad is None


# Types


def keep_in_float32(model: PreTrainedModel, *names: str) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        if any(part in name for part in names):
            parameter.data = parameter.data.float()
    return model


@each_rank
@pytest.mark.parametrize("kept", ["lm_head", "embed_tokens", "norm"])
def test_a_bfloat16_model_with_parts_in_float32_reads_and_trains_under_autocast(kept: str, r: int | None) -> None:
    # weights that bfloat16 can hold, so that the float32 model is the reference
    reference = wrap(make_tiny_model(dtype=torch.bfloat16).float(), r=r)
    model = wrap(keep_in_float32(make_tiny_model(dtype=torch.bfloat16), kept), r=r)
    with torch.autocast("cpu", torch.bfloat16):
        found, tokens = logits_of(model), greedy(model)
        mine = gradients(model.train())
    expected = logits_of(reference)
    assert (found.float() - expected).norm() / expected.norm() < 0.05
    assert tokens.shape == (1, 52)
    theirs = gradients(reference)
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        assert gradient.dtype == torch.float32
        assert nn.functional.cosine_similarity(gradient.flatten(), theirs[name].flatten(), dim=0) > 0.9


@each_rank
@pytest.mark.parametrize("cast", [True, False], ids=["float32 twins", "bfloat16 twins"])
def test_a_bfloat16_model_trains_without_autocast_whatever_the_type_of_its_twins(cast: bool, r: int | None) -> None:
    base = make_tiny_model(dtype=torch.bfloat16)
    torch.manual_seed(0)
    model = get_peft_model(base, small_config(r=r), autocast_adapter_dtype=cast).train()
    perturb_twins(model)
    mine = gradients(model)
    assert {g.dtype for g in mine.values()} == {torch.float32 if cast else torch.bfloat16}
    theirs = gradients(wrap(make_tiny_model(dtype=torch.bfloat16).float(), r=r).train())
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        assert nn.functional.cosine_similarity(gradient.flatten().float(), theirs[name].flatten(), dim=0) > 0.85


def test_a_float32_model_is_read_under_autocast_from_the_first_call_on() -> None:
    model = wrap(make_tiny_model(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        found = logits_of(model)
    expected = logits_of(wrap(make_tiny_model(dtype=torch.float32)))
    assert (found.float() - expected).norm() / expected.norm() < 0.05


# The meta device


@each_rank
def test_a_model_without_weights_is_wrapped_but_not_read(r: int | None) -> None:
    with torch.device("meta"):
        model = wrap(make_tiny_model_on_meta(), r=r)
    for call in (lambda: model(IDS), lambda: model.generate(IDS, max_new_tokens=1), lambda: model.encode(IDS)):
        with refusal("meta device", "`from_pretrained`"):
            call()


def make_tiny_model_on_meta() -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(make_tiny_model().config)


@each_rank
def test_weights_that_are_loaded_after_wrapping_are_read(r: int | None) -> None:
    model, expected = wrap(make_tiny_model_on_meta(), r=r), wrap(make_tiny_model(dtype=torch.float32), r=r)
    model.load_state_dict(expected.state_dict(), strict=True, assign=True)
    model.base_model.model.model.rotary_emb.to_empty(device="cpu")
    rotary = expected.base_model.model.model.rotary_emb
    model.base_model.model.model.rotary_emb.inv_freq = rotary.inv_freq  # not saved, so not loaded
    torch.testing.assert_close(logits_of(model), logits_of(expected), rtol=1e-6, atol=1e-6)


def test_twins_without_weights_are_refused_until_they_are_loaded(tmp_path: Path) -> None:
    expected = wrap(make_tiny_model(), r=4)
    expected.save_pretrained(tmp_path)
    model = get_peft_model(make_tiny_model(), expected.peft_config["default"], low_cpu_mem_usage=True)
    with refusal("twins", "'default'", "`low_cpu_mem_usage=True`"):
        model(IDS)
    set_peft_model_state_dict(model, load_peft_weights(str(tmp_path)), low_cpu_mem_usage=True)
    torch.testing.assert_close(logits_of(model.double().eval()), logits_of(expected), rtol=0, atol=1e-9)


# `torch.compile`


class Backend:
    """Compiles nothing, and counts the graphs that it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def compiled(where: str, backend: Any) -> PeftModel:
    """A model that is compiled before it is wrapped, or after, or layer by layer, or with what wraps it."""
    base = make_tiny_model(dtype=torch.float32)
    if where == "before":
        base.compile(backend=backend)
    model = wrap(base)
    parts = {"before": [], "after": [base], "layers": base.model.layers, "around": [model]}
    for module in parts[where]:
        module.compile(backend=backend)
    return model


@pytest.mark.parametrize("where", ["before", "after", "layers", "around"])
def test_a_compiled_model_reads_and_trains_like_one_that_is_not(where: str) -> None:
    torch.compiler.reset()
    model, expected = compiled(where, Backend()), wrap(make_tiny_model(dtype=torch.float32))
    torch.testing.assert_close(logits_of(model), logits_of(expected), rtol=0, atol=1e-5)
    assert torch.equal(greedy(model), greedy(expected))
    assert_same_gradients(gradients(model.train()), gradients(expected.train()), 1e-4)


@pytest.mark.parametrize("where", ["before", "after", "layers"])
def test_what_the_base_model_reads_alone_runs_compiled_and_chunks_do_not(where: str) -> None:
    torch.compiler.reset()
    backend = Backend()
    model = compiled(where, backend)
    logits_of(model)
    assert backend.graphs == 0
    found = logits_of(model, IDS[:, :8])
    assert backend.graphs > 0
    torch.testing.assert_close(found, logits_of(make_tiny_model(dtype=torch.float32), IDS[:, :8]))


def test_what_torch_compile_returns_is_refused_with_the_remedy() -> None:
    base = torch.compile(make_tiny_model(), backend="eager")
    with refusal("`torch.compile(model)`", "`model.compile()`"):
        get_peft_model(base, FocusConfig())


# Several devices, of which this machine has one: "meta" is the other


def test_states_follow_their_layer_to_its_device() -> None:
    here, there = (torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4)), (torch.zeros(1, 1, 1, 4, device="meta"),) * 2
    store = KeyValueStore(2, 3)
    assert store.layer(0, here)[0].device.type == "cpu"
    assert {states.device.type for states in store.layer(0, there)} == {"meta"}
    assert {states.device.type for states in store.layers[0]} == {"meta"}
