"""
What holds for each kind of scaled rotary embedding.

Frames of our own rest on position differences alone. Linear, yarn and llama3 scaling change the frequencies once and
for all, so any row may start anywhere. Dynamic and longrope scaling change them when a position passes the original
length; so every row must stay within it, and the sizes are limited such that it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import each_decoding, make_focus_model, make_tiny_model, random_ids
from families import IS_OLD
from generating import TIGHT, assert_row_is, generate
from reference import Reference
from refusal import refusal
from torch import nn

from focus_peft.frozen.facts import ModelFacts


ORIGINAL = 32
LENGTH = {"original_max_position_embeddings": ORIGINAL}


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", rope("linear", factor=4.0)),
    "yarn": ("llama", rope("yarn", factor=4.0, **LENGTH)),
    "llama3": ("llama", rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, **LENGTH)),
    "dynamic": ("llama", {"max_position_embeddings": ORIGINAL, **rope("dynamic", factor=4.0)}),
    "longrope": (
        "phi3",
        LENGTH | rope("longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 2.0, 3.0, 4.0], **LENGTH),
    ),
}
STEADY, CHANGING = ("linear", "yarn", "llama3"), ("dynamic", "longrope")
each_scaling = pytest.mark.parametrize("scaling", SCALED)
each_changing = pytest.mark.parametrize("scaling", CHANGING)


def make_scaled_model(scaling: str) -> nn.Module:
    family, fields = SCALED[scaling]
    return make_tiny_model(family, **fields)


def make_scaled_focus_model(scaling: str, **fields: Any) -> nn.Module:
    family, base = SCALED[scaling]
    return make_focus_model(family, base=base, **fields)


def logits_from(model: nn.Module, start: int, ids: torch.Tensor) -> torch.Tensor:
    """What a model reads in a row that starts at position `start`."""
    positions = torch.arange(start, start + len(ids))[None]
    with torch.no_grad():
        return model(ids[None], position_ids=positions, attention_mask=torch.ones(1, len(ids))).logits


def rotary_of(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if "Rotary" in type(module).__name__)


@contextmanager
def watched_frequencies(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that grows by the frequencies with every pass."""
    seen: list[torch.Tensor] = []
    handle = rotary_of(model).register_forward_hook(lambda module, *_: seen.append(module.inv_freq.clone()))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("scaling", STEADY)
def test_where_frequencies_are_steady_a_row_may_start_anywhere(scaling: str) -> None:
    model, ids = make_scaled_model(scaling), random_ids(20)
    expected = logits_from(model, 0, ids)
    plain = logits_from(make_tiny_model("llama"), 0, ids)
    assert not torch.allclose(expected, plain), "the scaling does something"
    for start in (-100, -5, ORIGINAL, 1000):
        torch.testing.assert_close(logits_from(model, start, ids), expected, **TIGHT)


@each_changing
def test_where_frequencies_change_a_row_may_start_anywhere_within_the_original_length(scaling: str) -> None:
    model, ids = make_scaled_model(scaling), random_ids(20)
    expected = logits_from(model, 0, ids)
    for start in (-100, -5, ORIGINAL - 20):
        torch.testing.assert_close(logits_from(model, start, ids), expected, **TIGHT)
    assert (logits_from(model, ORIGINAL - 19, ids) - expected).abs().max() > 1e-3


@each_scaling
def test_the_positions_of_a_model_are_those_that_its_frequencies_hold_for(scaling: str) -> None:
    expected = ORIGINAL if scaling in CHANGING else 128
    assert ModelFacts.of(make_scaled_model(scaling)).max_positions == expected


@pytest.mark.parametrize("length", [21, 45], ids=["", "past the original length"])
@each_decoding
@each_scaling
def test_scaled_rotary_equals_the_slow_reference(scaling: str, decoding: str, length: int) -> None:
    model = make_scaled_focus_model(scaling, decoding=decoding)
    ids = random_ids(length, seed=3)
    expected = Reference(make_scaled_model(scaling), model).greedy(ids, 10)  # the ninth spills
    assert_row_is(generate(model, ids, 10), 0, length, expected)
    with torch.no_grad():
        found = model(torch.cat([ids, expected[0][:-1]])[None], logits_to_keep=10).logits[0]
    torch.testing.assert_close(found, expected[1], **TIGHT)


@each_decoding
@each_changing
def test_frequencies_never_change_while_reading_and_writing(scaling: str, decoding: str) -> None:
    model = make_scaled_focus_model(scaling, decoding=decoding)
    before = rotary_of(model).inv_freq.clone()
    document, question = random_ids(60)[None], random_ids(12, seed=1)[None]
    with watched_frequencies(model) as seen, torch.no_grad():
        model(document, logits_to_keep=2)
        model.generate(document, attention_mask=torch.ones_like(document), max_new_tokens=12, do_sample=False)
        memory = model.encode(document)
        model.generate(question, attention_mask=torch.ones_like(question), memory=memory, max_new_tokens=2)
    assert len(seen) > 20
    assert all(torch.equal(frequencies, before) for frequencies in seen)


@pytest.mark.parametrize(
    ("tokens", "label_size"),
    [(60, 8), (60, 30), (400, 8)],
    ids=["room for all", "many labels", "many chunks"],
)
@each_decoding
@each_changing
def test_training_keeps_the_frequencies_or_is_refused(
    scaling: str, decoding: str, tokens: int, label_size: int
) -> None:
    model = make_scaled_focus_model(scaling, decoding=decoding, label_size=label_size)
    before = rotary_of(model).inv_freq.clone()
    ids = random_ids(tokens)[None]
    refused = False
    with watched_frequencies(model) as seen:
        try:
            model(ids, labels=ids, generator=torch.Generator().manual_seed(0)).loss.backward()
        except ValueError as error:
            refused = str(ORIGINAL) in str(error)
    assert all(torch.equal(frequencies, before) for frequencies in seen)
    assert refused or seen


@each_changing
def test_sizes_and_inputs_beyond_the_original_length_are_refused(scaling: str) -> None:
    with refusal("`chunk_size` (30)", f"{ORIGINAL} positions"):
        make_scaled_focus_model(scaling, chunk_size=30)
    model = make_scaled_focus_model(scaling)
    ids = random_ids(200)[None]  # more candidates than positions are left
    with refusal("candidates", f"{ORIGINAL} positions", model=model):
        model.generate(ids, max_new_tokens=1)


@pytest.mark.parametrize(
    "scaling",
    [
        pytest.param(
            "dynamic",
            marks=pytest.mark.xfail(
                IS_OLD, reason="older transformers never set dynamic frequencies back", strict=False
            ),
        ),
        "longrope",
    ],
)
def test_what_the_base_model_read_before_does_not_matter(scaling: str) -> None:
    model, ids = make_scaled_focus_model(scaling), random_ids(30)[None]
    with torch.no_grad():
        before = model(ids).logits
        with model.disable_adapter():
            model(random_ids(80)[None])  # changes the frequencies
        torch.testing.assert_close(model(ids).logits, before, **TIGHT)
