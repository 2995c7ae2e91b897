"""`FocusConfig`: what it accepts, what it refuses, how it is stored, and the window sizes that come out of it."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import each_decoding, make_focus_model, make_tiny_model, random_ids
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.config import PeftConfig as PlainPeftConfig
from refusal import refusal
from torch import nn

from focus_peft import FocusConfig
from focus_peft.config import INFERENCE_FIELDS
from focus_peft.foreign_options import FOREIGN
from focus_peft.frozen.facts import ModelFacts
from focus_peft.passes.settings import WindowSizes


NAN, INFINITY = float("nan"), float("inf")

# one value for each field that differs from its default
OTHER_VALUES: dict[str, Any] = {
    "target_modules": ["q_proj", "v_proj"],
    "exclude_modules": ["o_proj"],
    "layers_to_transform": [1],
    "r": 4,
    "alpha": 2.5,
    "chunk_size": 24,
    "local_size": 20,
    "prompt_size": 6,
    "add_bos": False,
    "decoding": "exact",
    "chunk_batch_size": 2,
    "read_chunks": 2,
    "keep_candidates": False,
    "storage": "disk",
    "storage_dir": tempfile.gettempdir(),
    "spread_chunks": True,
    "loss": "draw",
    "continuation_weight": 0.5,
    "repetition_weight": 2.0,
    "choice_weight": 0.5,
    "distill_weight": 0.25,
    "label_size": 7,
    "train_local_size": 9,
    "train_min_chunk_size": 5,
}
IMPOSSIBLE: dict[str, list[Any]] = {
    "target_modules": [[], "", (), 5, True, [1], ["q_proj", ""], "(", {"q_proj": 1}],
    "exclude_modules": [[], "", (), 5, True, [1], ["q_proj", ""], "(", {"q_proj": 1}],
    "layers_to_transform": [[], -1, "1", True, [0, -1], ["0"], 1.5],
    "r": [0, -1, 1.5, True, "4", NAN],
    "alpha": [0, -1, NAN, INFINITY, "x"],
    "chunk_size": [0, -1, 2.5, "8", True],
    "local_size": [0, -3, 2.0, "8", True],
    "prompt_size": [0, -3, 2.0, "8", True],
    "add_bos": [1, "yes"],
    "decoding": [None, "fast", ["exact"], "EXACT", 1],
    "chunk_batch_size": [0, -1, 1.5, "8", True],
    "read_chunks": [0, -1, 1.5, "8", True],
    "keep_candidates": [None, 1, "yes"],
    "storage": [None, "tape", "DISK", 8, ["cpu"]],
    "storage_dir": ["", 5, True, b"", ["/tmp"]],
    "spread_chunks": [None, 1, "yes"],
    "loss": [None, "mean", 3],
    "continuation_weight": [-1, NAN, INFINITY, None, "1"],
    "repetition_weight": [-1, NAN, INFINITY, None, "1"],
    "choice_weight": [-1, NAN, INFINITY, None, "1", True],
    "distill_weight": [-0.1, 1.1, NAN, None, "0"],
    "label_size": [0, -2, None, 2.5, True],
    "train_local_size": [0, -2, "8", 2.5, True],
    "train_min_chunk_size": [0, -2, "8", 2.5, True],
}
# those that go together: chunks are read in full in streaming decoding only
TOGETHER = {**OTHER_VALUES, "read_chunks": None}
# what a field cannot be set without
NEEDED: dict[str, dict[str, Any]] = {
    "alpha": {"r": 4},
    "keep_candidates": {"read_chunks": 2},
    "storage_dir": {"storage": "disk"},
}
# these change where things are, and never results
HARMLESS = ("chunk_batch_size", "storage", "storage_dir", "spread_chunks")
MAX_POSITIONS = sorted({*range(64, 200), *(2**n + d for n in range(7, 18) for d in (-1, 0, 1)), 10_000, 131_072})


def own_fields() -> list[str]:
    inherited = {field.name for field in fields(PlainPeftConfig)}
    return [field.name for field in fields(FocusConfig) if field.name not in inherited]


# Fields


def test_every_field_has_a_help_text_and_stands_in_the_docstring() -> None:
    for field in fields(FocusConfig):
        if field.name in own_fields():
            assert field.metadata["help"].endswith("."), field.name
            assert field.name in (FocusConfig.__doc__ or ""), field.name


def test_the_tests_below_know_every_field() -> None:
    assert sorted(OTHER_VALUES) == sorted(IMPOSSIBLE) == sorted(own_fields())


@pytest.mark.parametrize("field, value", [(field, value) for field, values in IMPOSSIBLE.items() for value in values])
def test_an_impossible_value_is_refused_by_field_and_value(field: str, value: Any) -> None:
    shown = "empty" if field.endswith("_modules") and value in ([], "", ()) else str(value)
    with refusal(f"`{field}`", shown):
        FocusConfig(**{field: value}, **NEEDED.get(field, {}))


@pytest.mark.parametrize("field", own_fields())
def test_every_field_can_be_set(field: str) -> None:
    assert getattr(FocusConfig(**{field: OTHER_VALUES[field], **NEEDED.get(field, {})}), field) == OTHER_VALUES[field]


@pytest.mark.parametrize(
    "given, named",
    [
        ({"prompt_size": 9, "local_size": 8}, ["`prompt_size`", "9", "`local_size`", "8"]),
        ({"alpha": 3}, ["`alpha`", "3", "`r`"]),
        ({"continuation_weight": 0, "repetition_weight": 0}, ["`continuation_weight`", "`repetition_weight`", "0"]),
        (
            {"layers_to_transform": [0], "target_modules": ".*q_proj"},
            ["`layers_to_transform`", "[0]", "`target_modules`", ".*q_proj"],
        ),
        ({"task_type": "SEQ_CLS"}, ["`task_type`", "CAUSAL_LM", "SEQ_CLS"]),
        (
            {"chunk_size": 64, "train_min_chunk_size": 128},
            ["`train_min_chunk_size` (128) is larger than `chunk_size` (64)"],
        ),
    ],
    ids=str,
)
def test_values_that_do_not_go_together_are_refused(given: dict[str, Any], named: list[str]) -> None:
    with refusal(*named):
        FocusConfig(**given)


@pytest.mark.parametrize("names", [("v_proj", "q_proj"), {"v_proj", "q_proj"}], ids=["tuple", "set"])
def test_target_modules_of_any_collection_become_a_list(names: Any) -> None:
    assert FocusConfig(target_modules=names).target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize("name", FOREIGN)
def test_an_option_of_another_method_is_refused_with_what_to_do(name: str) -> None:
    with refusal(f"`{name}`", "`FocusConfig`", "['x']", error=TypeError):
        FocusConfig(**{name: ["x"]})
    config = FocusConfig()
    assert getattr(config, name, None) is None
    with refusal(f"`{name}`", "`FocusConfig`", error=AttributeError):
        getattr(config, name)
    setattr(config, name, ["x"])  # as code does that was written for LoRA
    with refusal(f"`{name}`", "`FocusConfig`", error=TypeError):
        get_peft_model(make_tiny_model(), config)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        FocusConfig(no_option=1)  # type: ignore[call-arg]


def test_the_scale_of_a_delta_is_alpha_by_r_and_two_by_default() -> None:
    assert FocusConfig(r=4).scaling == 2
    assert FocusConfig(r=4, alpha=2).scaling == 0.5
    with refusal("`scaling`", "`r`"):
        _ = FocusConfig().scaling


def test_the_task_type_is_causal_lm_by_default() -> None:
    assert FocusConfig().task_type == TaskType.CAUSAL_LM
    assert FocusConfig(task_type=None).task_type == TaskType.CAUSAL_LM


# Storage


@pytest.mark.parametrize("values", [{}, TOGETHER, {"target_modules": ".*q_proj"}], ids=["defaults", "all", "regex"])
@pytest.mark.parametrize("reader", [FocusConfig, PeftConfig])
def test_a_saved_configuration_comes_back_equal(
    reader: type[PeftConfig], values: dict[str, Any], tmp_path: Path
) -> None:
    config = FocusConfig(**values)
    config.save_pretrained(str(tmp_path))
    loaded = reader.from_pretrained(str(tmp_path))
    assert type(loaded) is FocusConfig
    assert loaded == replace(config, storage_dir=None)  # a folder of this machine


def test_a_configuration_comes_through_a_saved_adapter(tmp_path: Path) -> None:
    values = {**TOGETHER, "chunk_batch_size": None}
    get_peft_model(make_tiny_model(), FocusConfig(**values)).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_tiny_model(), tmp_path).peft_config["default"]
    assert {name: getattr(loaded, name) for name in own_fields()} == {**values, "storage_dir": None}


def test_loading_warns_of_fields_that_a_later_version_may_have_added(tmp_path: Path) -> None:
    FocusConfig(r=3).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "invented_later": 1}))
    with pytest.warns(UserWarning, match="invented_later"):
        assert FocusConfig.from_pretrained(str(tmp_path)).r == 3


def test_an_impossible_value_in_a_file_is_refused(tmp_path: Path) -> None:
    FocusConfig(r=3).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": -3}))
    with refusal("`r`", "-3"):
        FocusConfig.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_a_configuration_is_equal(copied: Any) -> None:
    config = FocusConfig(**TOGETHER)
    assert copied(config) == config
    assert type(copied(config)) is FocusConfig


# Sizes


@pytest.mark.parametrize("maximum", MAX_POSITIONS)
def test_derived_sizes_fit_the_model_with_room_to_grow_by_a_chunk(maximum: int) -> None:
    sizes = WindowSizes.for_model(FocusConfig(), maximum)
    bos = 1
    assert sizes.chunk == sizes.local == min(2048, maximum // 4)
    assert sizes.prompt == min(512, sizes.chunk)
    assert sizes.chunk + bos + sizes.prompt + sizes.chunk <= maximum
    assert sizes.limit - (bos + sizes.local + sizes.chunk) >= maximum // 4, "candidates of a quarter of the positions"


def test_a_model_with_many_positions_gets_the_sizes_of_the_paper() -> None:
    sizes = WindowSizes.for_model(FocusConfig(), 131072)
    assert (sizes.chunk, sizes.local, sizes.prompt) == (2048, 2048, 512)


@pytest.mark.parametrize(
    "given",
    [
        {"chunk_size": 100},
        {"chunk_size": 126},
        {"chunk_size": 1},
        {"local_size": 120},
        {"local_size": 1},
        {"prompt_size": 60},
        {"prompt_size": 100},
        {"prompt_size": 100, "local_size": 110},
        {"prompt_size": 1},
        {"chunk_size": 100, "local_size": 120},
    ],
    ids=str,
)
def test_sizes_that_are_left_out_make_room_for_those_that_are_given(given: dict[str, int]) -> None:
    sizes = WindowSizes.for_model(FocusConfig(**given), 128)
    found = {"chunk_size": sizes.chunk, "local_size": sizes.local, "prompt_size": sizes.prompt}
    assert {name: found[name] for name in given} == given
    assert 1 <= sizes.prompt <= sizes.local
    assert sizes.chunk + 1 + sizes.prompt <= 128
    assert sizes.local + 2 <= 128


@pytest.mark.parametrize(
    "given, named",
    [
        ({"chunk_size": 128}, "`chunk_size` (128)"),
        ({"chunk_size": 1000}, "`chunk_size` (1000)"),
        ({"chunk_size": 100, "local_size": 60, "prompt_size": 60}, "`prompt_size` (60)"),
        ({"local_size": 127}, "`local_size` (127)"),
        ({"local_size": 1000}, "`local_size` (1000)"),
        ({"local_size": 1000, "prompt_size": 500}, "500"),
    ],
    ids=str,
)
def test_explicit_sizes_that_cannot_fit_are_refused_with_the_positions_of_the_model(
    given: dict[str, int], named: str
) -> None:
    with refusal(named, "128 positions", "choose"):
        WindowSizes.for_model(FocusConfig(**given), 128)


@pytest.mark.parametrize("maximum", [1, 2])
def test_a_model_that_has_no_room_for_anything_is_refused(maximum: int) -> None:
    with refusal(f"{maximum} positions"):
        WindowSizes.for_model(FocusConfig(), maximum)


def test_sizes_that_do_not_fit_are_refused_before_anything_is_wrapped() -> None:
    base = make_tiny_model()
    with refusal("`chunk_size` (300)", "128 positions"):
        get_peft_model(base, FocusConfig(chunk_size=300, prompt_size=4))
    assert not hasattr(base, "peft_config")
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert all(type(module) is nn.Linear for name, module in base.named_modules() if name.endswith("_proj"))


@contextmanager
def recorded_positions(model: PeftModel) -> Iterator[list[tuple[int, int]]]:
    """The first and last position of every row of every pass."""
    found: list[tuple[int, int]] = []

    def record(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        positions = kwargs["position_ids"] if kwargs.get("position_ids") is not None else torch.zeros(1, 1)
        found.extend(zip(positions.amin(-1).flatten().tolist(), positions.amax(-1).flatten().tolist(), strict=True))

    handle = model.get_base_model().base_model.register_forward_pre_hook(record, with_kwargs=True)
    yield found
    handle.remove()


@each_decoding
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_default_sizes_keep_reading_and_generating_inside_the_positions(family: str, decoding: str) -> None:
    maximum = 64
    base = make_tiny_model(family, max_position_embeddings=maximum)
    model = get_peft_model(base, FocusConfig(decoding=decoding)).eval()
    with recorded_positions(model) as positions:
        out = model.generate(random_ids(2 * maximum)[None], max_new_tokens=maximum // 2, do_sample=False)
    assert out.shape[1] == 2 * maximum + maximum // 2
    learned = model.base_model.facts.learned_positions
    assert max(last for _, last in positions) < maximum
    assert not learned or min(first for first, _ in positions) >= 0
    assert max(last - first for first, last in positions) < maximum


@pytest.mark.parametrize("maximum", [64, 8192, 131072])
def test_sizes_come_from_the_positions_of_the_model(maximum: int) -> None:
    model = get_peft_model(make_tiny_model(max_position_embeddings=maximum), FocusConfig())
    assert model.base_model.settings().sizes == WindowSizes.for_model(FocusConfig(), maximum)


def test_longrope_models_get_the_sizes_of_their_original_length() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    base = make_tiny_model(
        "phi3", max_position_embeddings=512, original_max_position_embeddings=128, rope_parameters=rope
    )
    assert ModelFacts.of(base).max_positions == 128


# Overrides for one call


@pytest.mark.usefixtures("distributed")
@pytest.mark.parametrize("field", INFERENCE_FIELDS)
def test_fields_that_matter_at_inference_can_be_overridden_for_one_call(field: str) -> None:
    value = {"local_size": 6, "prompt_size": 3}.get(field, OTHER_VALUES[field])
    given = {field: value, **NEEDED.get(field, {})}
    ids = random_ids(40)[None]
    options: dict[str, Any] = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    model, configured = make_focus_model(), make_focus_model(**given)
    before = copy.deepcopy(model.peft_config["default"])
    found, expected = model.generate(ids, **options, **given), configured.generate(ids, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(torch.stack(found.scores), torch.stack(expected.scores))
    assert model.peft_config["default"] == before
    plain = torch.stack(model.generate(ids, **options).scores)
    assert torch.allclose(torch.stack(found.scores), plain) == (field in HARMLESS)
    torch.testing.assert_close(model(ids, **given).logits, configured(ids).logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [4, 30], ids=["no memory", "memory"])
@pytest.mark.parametrize(
    "field, value",
    [
        ("local_size", 0),
        ("local_size", 3),  # less than the configured prompt
        ("local_size", 1000),
        ("prompt_size", 9),  # more than the configured window
        ("prompt_size", -1),
        ("add_bos", "yes"),
        ("decoding", "fast"),
        ("chunk_batch_size", 1.5),
        ("storage", "tape"),
        ("spread_chunks", "yes"),
        ("storage_dir", "/somewhere"),  # while the storage makes no files
    ],
)
def test_an_impossible_override_is_refused_before_anything_is_read(field: str, value: Any, length: int) -> None:
    model = make_focus_model()
    ids = random_ids(length)[None]
    for call in (model.generate, model.encode, model, lambda ids, **given: model(ids, labels=ids, **given)):
        with refusal(f"`{field}`", str(value), model=model):
            call(ids, **{field: value})


@pytest.mark.parametrize("field, value", [("chunk_size", 4), ("r", 2), ("loss", "draw"), ("add_boss", True)])
def test_what_belongs_to_the_adapter_cannot_be_overridden(field: str, value: Any) -> None:
    model = make_focus_model()
    with refusal(f"`{field}`", model=model, error=(ValueError, TypeError)):
        model.encode(random_ids(30)[None], **{field: value})
    with pytest.raises((ValueError, TypeError), match=field):
        model.generate(random_ids(30)[None], max_new_tokens=2, **{field: value})
    with refusal(f"`{field}`", error=(ValueError, TypeError)):
        model.base_model.settings(**{field: value})


def test_none_overrides_nothing() -> None:
    config = FocusConfig(**TOGETHER)
    assert config.with_overrides(**dict.fromkeys(INFERENCE_FIELDS)) == config


def test_a_reader_chooses_smaller_chunks_than_training_drew() -> None:
    config = FocusConfig(chunk_size=64, train_min_chunk_size=32, local_size=64, prompt_size=8)
    assert config.with_overrides(chunk_size=16).chunk_size == 16
    assert config.with_overrides(chunk_size=32).train_min_chunk_size == 32
    with pytest.raises(ValueError, match="`train_min_chunk_size`"):
        config.with_overrides(chunk_size=16, train_min_chunk_size=32)
    with pytest.raises(ValueError, match="`chunk_size`"):
        config.with_overrides(chunk_size="16")
