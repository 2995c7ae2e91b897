"""`FocusModel` as a PEFT tuner: what is trainable, what is stored, several adapters, and the way back to the base
model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    IDS,
    each_rank,
    logits_of,
    make_focus_model,
    make_tiny_model,
    perturb_twins,
    random_ids,
    small_config,
)
from families import CORE
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from refusal import refusal
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from focus_peft import FocusConfig
from focus_peft.frozen.compat import CACHE, OLDER
from focus_peft.layer import TwinLayer


each_family = pytest.mark.parametrize("family", CORE)
# separate and fused projections, nn.Linear and Conv1D, with and without biases, rotary and learned positions
each_kind = pytest.mark.parametrize(
    "family, r", [("llama", None), ("llama", 4), ("gpt2", None), ("opt", 4), ("phi3", 4)]
)


def untrained(family: str = "llama", dtype: torch.dtype = torch.float64, **fields: Any) -> PeftModel:
    """A wrapped model as `get_peft_model` leaves it."""
    return get_peft_model(make_tiny_model(family, dtype), small_config(**fields)).eval()


def greedy(model: nn.Module, ids: torch.Tensor = IDS, tokens: int = 6) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=tokens, do_sample=False)


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# Nothing but candidates goes through twins


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_family
def test_without_candidates_the_wrapped_model_is_the_base_model_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    model, base = make_focus_model(family, dtype), make_tiny_model(family, dtype)
    inner = model.get_base_model()
    with torch.no_grad():
        for ids in (IDS[:, :8], IDS):
            found, expected = inner(ids, output_hidden_states=True), base(ids, output_hidden_states=True)
            assert torch.equal(found.logits, expected.logits)
            assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
        assert torch.equal(logits_of(model, IDS[:, :8]), base(IDS[:, :8]).logits)


@each_rank
def test_trained_twins_change_the_answer(r: int | None) -> None:
    assert (logits_of(make_focus_model(r=r)) - logits_of(untrained(r=r))).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_rank
def test_models_of_every_type_read_like_their_float64_twin(r: int | None, dtype: torch.dtype) -> None:
    model = get_peft_model(make_tiny_model(dtype=dtype), small_config(r=r)).eval()
    assert {p.dtype for name, p in model.named_parameters() if "focus_" in name} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if "focus_" not in name} == {dtype}
    found = logits_of(model)
    assert found.dtype == dtype
    expected = logits_of(get_peft_model(make_tiny_model(dtype=dtype).double(), small_config(r=r)).eval())
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    error = (found.double() - expected).norm() / expected.norm()
    assert error < tolerance


# What gets a twin


def twin_paths(model: nn.Module) -> set[str]:
    return {name for name, module in model.get_base_model().named_modules() if isinstance(module, TwinLayer)}


@pytest.mark.parametrize(
    "family, fields, paths",
    [
        ("llama", {"target_modules": ["q_proj"]}, r".*\.q_proj"),
        ("llama", {"target_modules": ["q_proj", "v_proj"]}, r".*\.[qv]_proj"),
        ("llama", {"target_modules": ["layers.1.self_attn.o_proj"]}, r".*layers\.1\..*o_proj"),
        ("llama", {"target_modules": ["self_attn.k_proj"]}, r".*\.k_proj"),
        ("llama", {"target_modules": r".*\.[qk]_proj"}, r".*\.[qk]_proj"),
        ("llama", {"target_modules": r"model\.layers\.1\..*_proj"}, r".*layers\.1\..*_proj"),
        ("llama", {"target_modules": r".*layers\.0\.self_attn\.v_proj"}, r".*layers\.0\..*v_proj"),
        ("llama", {"target_modules": "all-linear"}, r".*_proj"),
        ("phi3", {"target_modules": ["qkv_proj"]}, r".*\.qkv_proj"),
        ("gpt2", {"target_modules": ["c_attn"]}, r".*\.c_attn"),
        ("gpt_neox", {"target_modules": ["query_key_value"]}, r".*\.query_key_value"),
        ("llama", {"layers_to_transform": 1}, r".*layers\.1\.self_attn\.._proj"),
        (
            "llama",
            {"layers_to_transform": [0], "target_modules": ["q_proj", "up_proj"]},
            r".*\.0\..*(q|up)_proj",
        ),
        (
            "llama",
            {"exclude_modules": ["o_proj", "layers.0.self_attn.k_proj"]},
            r".*\.[qv]_proj|.*\.1\..*k_proj",
        ),
        ("llama", {"exclude_modules": r".*layers\.0\..*"}, r".*layers\.1\.self_attn\.._proj"),
        ("llama", {"exclude_modules": ["q_proj"], "target_modules": r".*[qk]_proj", "r": 2}, r".*\.k_proj"),
    ],
)
def test_modules_and_layers_are_chosen_as_for_lora(
    family: str, fields: dict[str, Any], paths: str, tmp_path: Path
) -> None:
    model = untrained(family, **fields)
    expected = {name for name, _ in make_tiny_model(family).named_modules() if re.fullmatch(paths, name)}
    assert twin_paths(model) == expected != set()
    perturb_twins(model)
    model(IDS, labels=IDS).loss.backward()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_tiny_model(family), tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "family, fields, named",
    [
        ("llama", {"layers_to_transform": [0, 7]}, ["7"]),
        ("llama", {"target_modules": ["nothing"]}, ["nothing"]),
        ("llama", {"target_modules": ".*nothing"}, ["nothing"]),
        ("llama", {"target_modules": ["q_proj", "mlp"]}, ["`target_modules`", "linear"]),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}, ["`target_modules`", "linear"]),
        ("llama", {"target_modules": ".*(q_proj|norm)"}, ["`target_modules`", "linear"]),
        # it expands the latents of all tokens
        ("deepseek_v3", {"target_modules": ["kv_b_proj"]}, ["`target_modules`", "kv_b_proj", "`kv_a_proj_with_mqa`"]),
    ],
)
def test_what_can_have_no_twin_is_refused_and_the_model_left_alone(
    family: str, fields: dict[str, Any], named: list[str]
) -> None:
    base = make_tiny_model(family)
    before = dict(base.named_modules())
    with refusal(*named):
        get_peft_model(base, small_config(**fields))
    assert dict(base.named_modules()) == before
    assert all(parameter.requires_grad for parameter in base.parameters())


# What is trainable


@each_rank
def test_the_printed_number_of_trainable_parameters_is_right(
    r: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_tiny_model()
    frozen = sum(parameter.numel() for parameter in base.parameters())
    shapes = [(32, 32), (32, 16), (32, 16), (32, 32)]  # q, k, v, o of each of two layers
    expected = 2 * sum(i * o if r is None else r * (i + o) for i, o in shapes)
    model = get_peft_model(base, small_config(r=r))
    assert trainable(model) == [name for name, _ in model.named_parameters() if "focus_" in name]
    assert model.get_nb_trainable_parameters() == (expected, frozen + expected)
    model.print_trainable_parameters()
    share = 100 * expected / (frozen + expected)
    assert capsys.readouterr().out == (
        f"trainable params: {expected:,d} || all params: {frozen + expected:,d} || trainable%: {share:.4f}\n"
    )


@pytest.mark.parametrize("r, expected", [(None, 2_147_483_648), (16, 16_777_216)], ids=["full", "low-rank"])
def test_a_model_of_seven_billion_has_the_papers_number_of_twins_or_megabytes(r: int | None, expected: int) -> None:
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(LlamaConfig(), dtype=torch.bfloat16)  # Llama-2-7B
        model = get_peft_model(base, FocusConfig(r=r), autocast_adapter_dtype=False)
    assert model.get_nb_trainable_parameters()[0] == expected


def test_the_frozen_model_stays_in_evaluation_mode_and_gradients_follow_the_wrapped_model() -> None:
    model = untrained()
    assert model.train().base_model.training and not model.get_base_model().training
    assert not any(module.training for module in model.eval().modules())
    model.requires_grad_(False)
    assert trainable(model) == []


# Several adapters


def model_with_three() -> PeftModel:
    """Adapters "default" (full), "low" (low-rank) and "other" (other sizes), all trained."""
    model = make_focus_model()
    model.add_adapter("low", small_config(r=3))
    model.add_adapter("other", small_config(chunk_size=5, local_size=6, target_modules=["q_proj", "v_proj"]))
    for seed, name in enumerate(("low", "other")):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if f".{name}." in path:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def test_each_adapter_reads_as_if_it_were_alone() -> None:
    model = model_with_three()
    results = {}
    for name in ("default", "low", "other"):
        model.set_adapter(name)
        assert model.active_adapters == [name]
        results[name] = logits_of(model)
        alone = get_peft_model(make_tiny_model(), copy.deepcopy(model.peft_config[name])).eval()
        trained = dict(model.named_parameters())
        with torch.no_grad():
            for path, parameter in alone.named_parameters():
                if "focus_" in path:
                    parameter.copy_(trained[path.replace(".default.", f".{name}.")])
        torch.testing.assert_close(results[name], logits_of(alone), rtol=0, atol=1e-9)
        assert torch.equal(greedy(model), greedy(alone))
    assert not torch.allclose(results["default"], results["low"])
    assert not torch.allclose(results["default"], results["other"])


def test_only_the_active_adapter_is_trainable() -> None:
    model = model_with_three()
    assert all(".default." in name for name in trainable(model))
    for name in ("low", "other", "default"):
        model.set_adapter(name)
        expected = [path for path, _ in model.named_parameters() if f".{name}." in path]
        assert trainable(model) == expected != []
        model(IDS, labels=IDS).loss.backward()
        assert all(p.grad is None for path, p in model.named_parameters() if path not in expected)
        model.zero_grad(set_to_none=True)


def test_adding_an_adapter_changes_nothing_until_it_is_set() -> None:
    model = make_focus_model()
    before, names = logits_of(model), trainable(model)
    model.add_adapter("second", small_config(r=2, chunk_size=4))
    assert model.active_adapters == ["default"]
    assert trainable(model) == names
    assert torch.equal(logits_of(model), before)


MERGING = ("cannot be merged", "candidate positions only", "`unload()`")
REFUSED: dict[str, tuple[Callable[[Any], Any], tuple[str, ...], type[Exception]]] = {
    "two at once": (
        lambda model: model.base_model.set_adapter(["low", "other"]),
        ("`adapter_name`", "['low', 'other']", "one"),
        ValueError,
    ),
    "one that cannot fit": (
        lambda model: model.add_adapter("large", small_config(chunk_size=300)),
        ("`chunk_size` (300)", "128 positions"),
        ValueError,
    ),
    "several as one": (
        lambda model: model.add_weighted_adapter(["default", "low"], [0.5, 0.5], "both"),
        ("combined", "`set_adapter`"),
        NotImplementedError,
    ),
    "merge_and_unload": (lambda model: model.merge_and_unload(), MERGING, NotImplementedError),
    "merge_adapter": (lambda model: model.merge_adapter(), MERGING, NotImplementedError),
    "unmerge_adapter": (lambda model: model.unmerge_adapter(), MERGING, NotImplementedError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_with_adapters_is_refused_and_changes_nothing(name: str) -> None:
    call, named, error = REFUSED[name]
    model = model_with_three()
    before = logits_of(model)
    with refusal(*named, error=error):
        call(model)
    assert model.active_adapters == ["default"] and list(model.peft_config) == ["default", "low", "other"]
    assert torch.equal(logits_of(model), before)


def test_unknown_adapters_and_those_of_other_methods_are_refused_by_peft() -> None:
    model = make_focus_model()
    before = logits_of(model)
    with pytest.raises(ValueError, match="nobody"):
        model.set_adapter("nobody")
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("lora", LoraConfig())
    assert model.active_adapters == list(model.peft_config) == ["default"]
    assert torch.equal(logits_of(model), before)


def test_deleting_an_adapter_leaves_the_others_as_they_were() -> None:
    model = model_with_three()
    before = logits_of(model)
    model.delete_adapter("low")
    assert list(model.peft_config) == ["default", "other"]
    assert not any(".low." in name for name in model.state_dict())
    assert torch.equal(logits_of(model), before)
    with pytest.warns(UserWarning, match="default was active"):
        model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    model.add_adapter("low", small_config(r=2))
    model.set_adapter("low")
    assert torch.isfinite(logits_of(model)).all()


def test_after_the_active_adapter_is_deleted_all_layers_have_the_same_one() -> None:
    model = make_focus_model(r=2)
    model.add_adapter("few layers", small_config(r=2, layers_to_transform=[1]))
    model.add_adapter("whole", small_config(r=2))
    perturb_twins(model)
    with pytest.warns(UserWarning, match="default was active"):
        model.delete_adapter("default")
    (active,) = model.active_adapters
    found = logits_of(model)
    model.set_adapter(active)
    assert torch.equal(logits_of(model), found)


def test_after_the_last_adapter_is_deleted_another_can_be_added() -> None:
    model = make_focus_model()
    model.delete_adapter("default")
    assert not any("focus_" in name for name in model.state_dict())
    with refusal("adapter"):
        model.base_model.settings()
    model.add_adapter("new", small_config(r=2))
    model.set_adapter("new")
    torch.testing.assert_close(logits_of(model), logits_of(untrained()), rtol=0, atol=1e-9)


# The way back


def test_a_disabled_adapter_takes_the_arguments_of_the_enabled_one() -> None:
    model, base = make_focus_model(), make_tiny_model()
    with model.disable_adapter():
        tokens = model.generate(IDS, max_new_tokens=3, do_sample=False, decoding="exact", local_size=6, progress=False)
        logits = model(IDS, generator=torch.Generator(), logits_to_keep=2).logits
        loss = model(IDS, labels=IDS).loss
    assert torch.equal(tokens, greedy(base, tokens=3))
    assert torch.equal(logits, base(IDS, logits_to_keep=2).logits)
    assert torch.equal(loss, base(IDS, labels=IDS).loss)


def test_a_disabled_adapter_refuses_a_memory() -> None:
    model = make_focus_model()
    memory = model.encode(IDS)
    with model.disable_adapter():
        with refusal("`memory`", "disabled", model=model):
            model.generate(IDS, memory=memory)
        with refusal("`memory`", "disabled", model=model):
            model(IDS, memory=memory)


def test_a_disabled_adapter_has_no_candidates_to_show() -> None:
    model = make_focus_model()
    with model.disable_adapter(), refusal("`chunk_attention`", "disabled", model=model):
        model.chunk_attention(random_ids(30)[None])


@pytest.mark.parametrize("name", [CACHE, OLDER])
def test_a_disabled_adapter_reads_a_conversation_anew_or_refuses_its_cache(name: str) -> None:
    model, base = make_focus_model(), make_tiny_model()
    output = model.generate(IDS, max_new_tokens=2, return_dict_in_generate=True)
    longer = torch.cat([output.sequences, IDS[:, :2]], dim=1)
    about = model.generate(IDS, memory=model.encode(IDS), max_new_tokens=2, return_dict_in_generate=True)
    with model.disable_adapter():
        found = model.generate(longer, max_new_tokens=3, do_sample=False, **{name: output[CACHE]})
        assert torch.equal(found, base.generate(longer, max_new_tokens=3, do_sample=False))
        with refusal(f"`{CACHE}`", "disabled", model=model):
            model.generate(torch.cat([about.sequences, IDS[:, :2]], dim=1), **{name: about[CACHE]})
        with refusal(f"`{CACHE}`", "disabled", model=model):
            model(longer[:, -1:], **{name: output[CACHE]})


def test_twins_without_weights_are_refused_whenever_they_are_added() -> None:
    model = make_focus_model()
    before = greedy(model)
    for _ in range(2):
        model.add_adapter("empty", small_config(), low_cpu_mem_usage=True)
        model.set_adapter("empty")
        for call in (greedy, logits_of, lambda model: model.encode(IDS), lambda model: model.chunk_attention(IDS)):
            with refusal("'empty'", "meta device"):
                call(model)
        model.set_adapter("default")
        assert torch.equal(greedy(model), before)
        model.delete_adapter("empty")
    model.add_adapter("empty", small_config(r=2))
    model.set_adapter("empty")
    assert torch.isfinite(logits_of(model)).all()


def test_an_adapter_is_enabled_again_after_an_error() -> None:
    model = make_focus_model()
    before, names = logits_of(model), trainable(model)
    with pytest.raises(KeyError), model.disable_adapter():
        raise KeyError
    assert torch.equal(logits_of(model), before)
    assert trainable(model) == names


def test_layers_can_be_disabled_and_enabled_without_a_context() -> None:
    model = make_focus_model()
    before = logits_of(model)
    model.base_model.disable_adapter_layers()
    assert torch.equal(logits_of(model), logits_of(make_tiny_model()))
    model.base_model.enable_adapter_layers()
    assert torch.equal(logits_of(model), before)


@each_kind
def test_unload_gives_back_the_base_model_with_its_original_modules(family: str, r: int | None) -> None:
    base = make_tiny_model(family)
    modules = dict(base.named_modules())
    attributes = set(vars(base))
    model = get_peft_model(base, small_config(r=r))
    perturb_twins(model)
    greedy(model)
    unloaded = model.unload()
    assert unloaded is base
    found = dict(unloaded.named_modules())
    assert list(found) == list(modules) and all(found[name] is module for name, module in modules.items())
    assert set(vars(unloaded)) == attributes, "nothing of ours is left on the model"
    expected = make_tiny_model(family)
    assert torch.equal(logits_of(unloaded), logits_of(expected))
    assert torch.equal(greedy(unloaded), greedy(expected))


def test_an_unloaded_model_can_be_wrapped_again() -> None:
    model = make_focus_model()
    again = get_peft_model(model.unload(), small_config()).eval()
    torch.testing.assert_close(logits_of(again), logits_of(untrained()), rtol=0, atol=1e-9)


# On disk


def assert_same_adapter(found: PeftModel, expected: PeftModel) -> None:
    ours = {name: p for name, p in expected.named_parameters() if "focus_" in name}
    theirs = {name: p for name, p in found.named_parameters() if "focus_" in name}
    assert list(ours) == list(theirs) and ours
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


@pytest.mark.parametrize(("r", "low_cpu_mem_usage"), [(None, True), (4, False), (4, True)])
def test_a_loaded_adapter_computes_the_same_logits(r: int | None, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = make_focus_model(r=r)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PeftModel.from_pretrained(make_tiny_model(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert_same_adapter(loaded, model)
    assert trainable(loaded) == [] and not loaded.training
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=1e-9)
    assert torch.equal(greedy(loaded), greedy(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_rank
def test_an_adapter_on_a_base_of_any_type_is_loaded_unchanged(
    r: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = make_focus_model(dtype=dtype, r=r)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_tiny_model(dtype=dtype), tmp_path)
    assert_same_adapter(loaded, model)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=tolerance, atol=tolerance)


@each_rank
def test_a_file_holds_the_twins_and_nothing_else(r: int | None, tmp_path: Path) -> None:
    model = make_focus_model(r=r)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    expected = {n.replace(".default", ""): p for n, p in model.named_parameters() if "focus_" in n}
    assert sorted(saved) == sorted(expected)
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


def train(model: PeftModel, steps: int) -> PeftModel:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        model(IDS, labels=IDS, generator=torch.Generator().manual_seed(step)).loss.backward()
        optimizer.step()
    return model


@each_rank
def test_training_goes_on_from_a_loaded_adapter(r: int | None, tmp_path: Path) -> None:
    model = train(make_focus_model(r=r), 2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_tiny_model(), tmp_path, is_trainable=True)
    assert trainable(loaded) == trainable(model)
    assert loaded.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    assert_same_adapter(train(loaded, 2), train(model, 2))


def test_every_adapter_of_a_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = model_with_three()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_tiny_model(), tmp_path)
    for name in ("low", "other"):
        loaded.load_adapter(tmp_path / name, adapter_name=name)
    assert loaded.active_adapters == ["default"]
    for name in ("default", "low", "other"):
        model.set_adapter(name)
        loaded.set_adapter(name)
        torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=1e-9)
    only = tmp_path / "only"
    model.save_pretrained(only, selected_adapters=["low"])
    assert sorted(path.name for path in only.iterdir()) == ["README.md", "low"]


def test_adapters_may_be_called_like_a_part_of_a_twin(tmp_path: Path) -> None:
    model = make_focus_model()
    model.save_pretrained(tmp_path)
    for names in (("focus_v1", "focus_v2"), ("weight", "focus_A"), ("default", "focus_twin")):
        loaded = PeftModel.from_pretrained(make_tiny_model(), tmp_path, adapter_name=names[0])
        loaded.load_adapter(tmp_path, adapter_name=names[1])
        for name in names:
            loaded.set_adapter(name)
            torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=1e-9)


@pytest.mark.skipif(not hasattr(BaseTuner, "_get_adapter_state_dict"), reason="this PEFT asks no tuner what is saved")
def test_an_adapter_without_its_weights_is_not_saved(tmp_path: Path) -> None:
    model = make_focus_model()
    wrapped = {f"_orig_mod.{name}": weight for name, weight in model.state_dict().items()}
    with refusal("`state_dict` has no weight of the adapter by its own name, but '_orig_mod."):
        model.save_pretrained(tmp_path, state_dict=wrapped)
    model.unload()
    with refusal("`state_dict`", "unloaded"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("rename", [lambda name: f"x.{name}", lambda name: None], ids=["other names", "none at all"])
def test_a_file_without_a_twins_weight_is_refused(rename: Callable[[str], str | None], tmp_path: Path) -> None:
    make_focus_model().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({new: weight for name, weight in load_file(file).items() if (new := rename(name))}, file)
    with refusal("has no weight of a twin", "`save_pretrained`"):
        PeftModel.from_pretrained(make_tiny_model(), tmp_path)


def test_an_adapter_finds_its_base_model_by_itself(tmp_path: Path) -> None:
    make_tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), small_config()).eval()
    perturb_twins(model)
    model.save_pretrained(tmp_path / "adapter")
    assert model.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert_same_adapter(loaded, model)
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=1e-4, atol=1e-4)


def test_an_old_style_file_of_weights_is_loaded_too(tmp_path: Path) -> None:
    model = make_focus_model()
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert_same_adapter(PeftModel.from_pretrained(make_tiny_model(), tmp_path), model)


# Copies


@each_rank
def test_a_deep_copy_is_a_model_of_its_own(r: int | None) -> None:
    model = make_focus_model(r=r)
    greedy(model)  # whatever a call may leave behind is copied too
    before = logits_of(model)
    copied = copy.deepcopy(model)
    assert torch.equal(logits_of(copied), before)
    assert torch.equal(greedy(copied), greedy(model))
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in copied.parameters()}
    assert not shared
    for wrapped in (copied, model):  # each base model's forward calls go through its own
        assert wrapped.get_base_model().forward.module is wrapped.get_base_model()
    perturb_twins(copied, std=0.5)
    assert not torch.allclose(logits_of(copied), before)
    assert torch.equal(logits_of(model), before)
    with copied.disable_adapter():
        assert torch.equal(logits_of(model), before)


def test_a_copy_reads_a_memory_of_the_original() -> None:
    model = make_focus_model()
    memory = model.encode(IDS)
    copied = copy.deepcopy(model)
    question = IDS[:, :5]
    found = copied.generate(question, memory=memory, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, model.generate(question, memory=memory, max_new_tokens=4, do_sample=False))


def test_the_base_model_can_be_reached() -> None:
    base = make_tiny_model()
    model = get_peft_model(base, small_config())
    assert model.get_base_model() is base
    assert isinstance(model.get_base_model(), PreTrainedModel)
    assert model.config is base.config
    assert model.device == base.device and model.dtype == base.dtype
