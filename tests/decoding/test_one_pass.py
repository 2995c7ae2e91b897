"""One pass for a streaming token: held to the two passes, which are held to the slow reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import make_focus_model, random_ids
from families import FAMILIES
from peft import PeftModel
from torch import nn

from focus_peft.decoding.cache import FocusCache
from focus_peft.frozen.compat import CACHE
from focus_peft.passes import probe


# Families that take two passes: ALiBi, attention that nobody can exchange, and keys that are made after the cache
IN_TWO = ["falcon", "falcon_new", "falcon_alibi", "mpt", "bloom", "doge", "diffllama", "deepseek_v2", "deepseek_v3"]
SHORT = {"do_sample": False, "max_new_tokens": 12}
PADDED = torch.tensor([[1] * 40, [0] * 13 + [1] * 27, [0] * 6 + [1] * 34])


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2", "mixtral"])
def model(request: pytest.FixtureRequest) -> PeftModel:
    return make_focus_model(request.param, torch.float64)


@contextmanager
def in_two_passes(model: PeftModel) -> Iterator[None]:
    """Within the context, the model takes two passes for a token."""
    reader = model.base_model.reader
    before, reader.reads_in_parts = reader.reads_in_parts, False
    try:
        yield
    finally:
        reader.reads_in_parts = before


@contextmanager
def calls_of(model: PeftModel) -> Iterator[list[int]]:
    """The rows of each pass of the base model's layers."""
    rows: list[int] = []
    layer = next(module for module in model.modules() if isinstance(module, nn.ModuleList))[0]
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        handle.remove()


def scores(model: PeftModel, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    output = model.generate(
        ids, **{**SHORT, **options}, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    return torch.cat([output.sequences.flatten().double(), torch.stack(output.logits).double().flatten()])


def batch(model: PeftModel, **options: Any) -> torch.Tensor:
    ids = torch.stack([random_ids(40, seed=n) for n in range(3)])
    return scores(model, ids, attention_mask=PADDED, **options)


def memory(model: PeftModel, **options: Any) -> torch.Tensor:
    documents = model.encode([random_ids(33, seed=4), random_ids(22, seed=5)], **options)
    return scores(model, torch.stack([random_ids(9, seed=n) for n in range(4)]), memory=documents)


def own_loop(model: PeftModel) -> torch.Tensor:
    """Several new tokens in a call, and in the next."""
    ids = random_ids(60)[None]
    cache = model(ids[:, :40], use_cache=True)[CACHE]
    return torch.cat([model(ids[:, a:b], use_cache=True, **{CACHE: cache}).logits for a, b in [(40, 45), (45, 52)]])


SCENARIOS: dict[str, Callable[[PeftModel], torch.Tensor]] = {
    "greedy, past a spill": lambda model: scores(model, random_ids(45)[None], max_new_tokens=30),
    "beams": lambda model: scores(model, random_ids(45)[None], num_beams=3, num_return_sequences=2),
    "two inputs, beams": lambda model: scores(
        model, torch.stack([random_ids(41, seed=n) for n in range(2)]), num_beams=2
    ),
    "ragged rows": batch,
    "ragged rows, batches of two chunks": lambda model: batch(model, chunk_batch_size=2),
    "prompt lookup": lambda model: scores(model, random_ids(12).repeat(4)[None], prompt_lookup_num_tokens=3),
    "own loop": own_loop,
    "two documents, two questions each": memory,
    "in 8 bits": lambda model: memory(model, storage="int8"),
    "on the disk, batches of one chunk": lambda model: memory(model, storage="disk", chunk_batch_size=1),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_one_pass_equals_two(model: PeftModel, scenario: Callable[[PeftModel], torch.Tensor]) -> None:
    with calls_of(model) as one:
        found = scenario(model)
    with in_two_passes(model), calls_of(model) as two:
        expected = scenario(model)
    assert len(one) < len(two)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # generate's logits are of single precision


@pytest.mark.parametrize(
    ("family", "newest", "r"),
    [(name, *how) for name in FAMILIES if name not in IN_TWO for how in [(1, 4), (3, None)]]
    + [("llama", 1, None), ("llama", 3, 4)],
)
def test_one_pass_equals_two_in_every_family(family: str, newest: int, r: int | None) -> None:
    model = make_focus_model(family, torch.float64, r=r)
    tuner, ids = model.base_model, random_ids(60).tolist()

    def logits() -> torch.Tensor:
        cache = FocusCache(tuner.reader, tuner.settings(), 1)
        cache.read([ids[:40]], 1)
        return torch.cat([cache.read([ids[at : at + newest]], newest)[0] for at in range(40, 58, newest)])

    with calls_of(model) as one:
        found = logits()
    with in_two_passes(model), calls_of(model) as two:
        expected = logits()
    assert len(one) < len(two)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", IN_TWO)
def test_a_family_that_takes_two_passes(family: str) -> None:
    assert not make_focus_model(family, torch.float64).base_model.reader.reads_in_parts


def test_a_token_is_one_pass_over_the_weights(model: PeftModel) -> None:
    cache = model(random_ids(40)[None], use_cache=True)[CACHE]
    for options, passes in [({}, 1), ({"decoding": "exact"}, 2)]:
        cache = model(random_ids(40)[None], use_cache=True, **options)[CACHE]
        with calls_of(model) as rows:
            model(random_ids(1)[None], use_cache=True, **{CACHE: cache})
        assert len(rows) == passes


def test_a_model_whose_one_pass_is_wrong_takes_two(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_focus_model("llama", torch.float64)
    original = probe.read_in_one_pass
    monkeypatch.setattr(probe, "read_in_one_pass", lambda *args: original(*args) * 1.1)
    assert not model.base_model.reader.reads_in_parts


def test_twins_of_single_precision_beside_a_model_of_half_precision() -> None:
    half = make_focus_model("llama", torch.bfloat16)
    for parameter in half.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    ids = random_ids(45)[None]
    found = scores(half, ids, max_new_tokens=1)
    with in_two_passes(half):
        expected = scores(half, ids, max_new_tokens=1)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
