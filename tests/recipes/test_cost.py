"""The formulas of memory and cost agree with what small models measure, and the page has the printed tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import each_decoding, make_focus_model, make_tiny_model, random_ids
from cost_tables import SHAPES, tables
from lib.cost import Counts, training_cost
from peft import get_peft_model
from refusal import refusal

from focus_peft import FocusConfig


PAGE = Path(__file__).parents[2] / "docs" / "training.md"
WINDOWS: dict[str, Any] = {"chunk_size": 32, "local_size": 32, "prompt_size": 16, "label_size": 8}
# What the estimate of activations may be off by, either way
FACTOR = 1.5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("r", [None, 3])
def test_parameters_are_counted_exactly(family: str, r: int | None) -> None:
    base = make_tiny_model(family, torch.float32)
    frozen = sum(parameter.numel() for parameter in base.parameters())
    config = FocusConfig(r=r, chunk_size=8, local_size=8, prompt_size=4)
    counts = Counts.of(base.config, config)
    model = get_peft_model(base, config)
    twins = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert (counts.frozen, counts.trainable) == (frozen, sum(parameter.numel() for parameter in twins))
    assert counts.tensors == len(twins)


def test_the_papers_model_has_as_many_twins_as_the_paper_says() -> None:
    counts = Counts.of(SHAPES["7B"], FocusConfig(chunk_size=2048, local_size=2048, prompt_size=512))
    assert round(counts.trainable / 1e9, 2) == 2.15


@pytest.mark.parametrize("r", [None, 3])
def test_weights_gradients_and_optimizer_state_are_exact(r: int | None) -> None:
    model = make_focus_model("llama", torch.float32, r=r, **WINDOWS).train()
    ids = random_ids(120)[None]
    twins = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(twins)
    output = model(ids, labels=ids)
    (output.loss + sum(0.0 * parameter.sum() for parameter in twins)).backward()
    optimizer.step()
    cost = training_cost(model.get_base_model().config, model.peft_config["default"], 120, precision="float32")
    assert cost.gradients == sum(parameter.grad.nbytes for parameter in twins)
    assert cost.twins == sum(parameter.nbytes for parameter in twins)
    assert cost.frozen == sum(p.nbytes for p in model.parameters()) - cost.twins
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert cost.optimizer == sum(value.nbytes for value in states)


def saved_for_backward(model: Any, ids: torch.Tensor) -> int:
    """Bytes that the backward pass holds, parameters left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, labels=ids, generator=torch.Generator().manual_seed(3))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("r", [None, 4])
@each_decoding
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"num_key_value_heads": 4, "hidden_size": 64, "head_dim": 16},
        {"intermediate_size": 200, "vocab_size": 400},
    ],
)
def test_activations_are_estimated_within_a_factor(shape: dict[str, Any], decoding: str, r: int | None) -> None:
    base = {"max_position_embeddings": 512, "num_hidden_layers": 4, **shape}
    model = make_focus_model("llama", torch.float32, base=base, decoding=decoding, r=r, **WINDOWS).train()
    ids = random_ids(320)[None]
    measured = saved_for_backward(model, ids)
    # the memory and the windows that this seed draws
    from focus_peft.losses.sampling import draw_sample

    tuner = model.base_model
    sample = draw_sample([True] * 320, tuner.settings(), torch.Generator().manual_seed(3))
    config = FocusConfig(**{**WINDOWS, "chunk_size": sample.chunk_size, "r": r, "decoding": decoding})
    cost = training_cost(
        model.get_base_model().config, config, sample.memory + WINDOWS["local_size"], precision="float32"
    )
    assert 1 / FACTOR < cost.activations / measured < FACTOR, (cost.activations, measured)


def test_zero_divides_what_it_divides() -> None:
    config, focus = SHAPES["1B"], FocusConfig(r=16, chunk_size=512, local_size=512, prompt_size=64)
    costs = [
        training_cost(config, focus, 4096, precision="deepspeed-bfloat16", zero_stage=s, processes=4) for s in range(4)
    ]
    assert costs[1].optimizer * 4 == pytest.approx(costs[0].optimizer, rel=1e-3)
    assert costs[1].gradients == costs[0].gradients == 4 * costs[2].gradients
    assert costs[2].frozen == costs[0].frozen == 4 * costs[3].frozen
    offloaded = training_cost(
        config, focus, 4096, precision="deepspeed-bfloat16", zero_stage=2, processes=4, offload_optimizer=True
    )
    assert offloaded.optimizer == 0 and offloaded.host == 4 * costs[2].optimizer
    assert offloaded.device == pytest.approx(costs[2].device - costs[2].optimizer)
    less = training_cost(config, focus, 4096, checkpointing=True)
    assert less.activations < 0.5 * training_cost(config, focus, 4096).activations
    assert training_cost(config, focus, 4096, precision="4bit").frozen < 0.7 * less.frozen


@pytest.mark.parametrize(
    ("given", "named"), [({"zero_stage": 4}, "`zero_stage`"), ({"precision": "int3"}, "`precision`")]
)
def test_what_cannot_be_is_refused(given: dict[str, Any], named: str) -> None:
    with refusal(named):
        training_cost(SHAPES["1B"], FocusConfig(), 4096, **given)


def test_the_page_has_the_tables_as_they_are_printed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for table in tables().split("\n\n"):
        assert table in text
