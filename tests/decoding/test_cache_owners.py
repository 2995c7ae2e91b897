"""Whose a cache is: what another model, another adapter, a copy and a shorter conversation make of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model, perturb_twins, random_ids, small_config
from generating import MODES
from peft import PeftModel
from refusal import refusal
from transformers import DynamicCache

from focus_peft.frozen.compat import CACHE


IDS, NEXT = random_ids(30, seed=1)[None], random_ids(4, seed=2)[None]
GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}


def read(model: PeftModel, ids: torch.Tensor = IDS, **options: Any) -> Any:
    """A cache that has read ids."""
    with torch.no_grad():
        return model(ids, use_cache=True, **options)[CACHE]


def go_on(model: Any, cache: Any, new: torch.Tensor = NEXT) -> torch.Tensor:
    with torch.no_grad():
        return model(new, use_cache=True, **{CACHE: cache}).logits[:, -1]


# Other models, other adapters


@pytest.mark.parametrize("ids", [IDS, IDS[:, :5]], ids=["chunks", "no chunks"])
def test_another_model_cannot_go_on_from_a_cache(model: PeftModel, ids: torch.Tensor) -> None:
    cache = read(model, ids)
    for other in (make_focus_model(base={"seed": 5}), copy.deepcopy(model)):
        with refusal(f"`{CACHE}`", "another model", "leave", model=other):
            go_on(other, cache)
        with refusal(f"`{CACHE}`", "another model", "leave", model=other):
            other.generate(torch.cat([ids, NEXT], dim=1), **{CACHE: cache}, max_new_tokens=2)
    for other in (make_tiny_model(), make_tiny_model("gpt2")):
        with refusal(f"`{CACHE}`", "another model", "leave"):
            go_on(other, cache)
    expected = read(model, ids)
    assert torch.equal(go_on(model, cache), go_on(model, expected)), "nothing has come of it"


@pytest.mark.parametrize("ids", [IDS, IDS[:, :5]], ids=["chunks", "no chunks"])
def test_another_adapter_cannot_go_on_from_a_cache(ids: torch.Tensor) -> None:
    model = make_focus_model()
    model.add_adapter("second", small_config())
    perturb_twins(model, seed=7)
    cache, expected = read(model, ids), go_on(model, read(model, ids))
    model.set_adapter("second")
    with refusal(f"`{CACHE}`", "['default']", "['second']", "switch", model=model):
        go_on(model, cache)
    with refusal(f"`{CACHE}`", "['default']", "['second']", "switch", model=model):
        model.generate(torch.cat([ids, NEXT], dim=1), **{CACHE: cache}, max_new_tokens=2)
    model.set_adapter("default")
    with model.disable_adapter(), refusal(f"`{CACHE}`", "the adapter is disabled", "leave it out"):
        go_on(model, cache)
    assert torch.equal(go_on(model, cache), expected)


# Tokens that are taken back


@pytest.mark.parametrize("options", [*({"decoding": mode} for mode in MODES), {"read_chunks": 1}], ids=str)
@pytest.mark.parametrize("first", [5, 30])
def test_a_cropped_cache_is_one_that_read_less_or_a_sentence(first: int, options: dict[str, Any]) -> None:
    model = make_focus_model(**options)
    ids = random_ids(first + 14, seed=3)[None]  # spills again on the way

    def cache_of(length: int) -> Any:
        cache = read(model, ids[:, : min(first, length)])
        for place in range(first, length):
            go_on(model, cache, ids[:, place : place + 1])
        return cache

    kept = refused = 0
    for length in range(first, ids.shape[1]):
        cache = cache_of(ids.shape[1])
        before = copy.deepcopy(cache)
        try:
            cache.crop(length)
        except ValueError as error:
            assert "read the shorter input again" in str(error)
            assert torch.equal(go_on(model, cache), go_on(model, before)), "and nothing was taken back"
            refused += 1
            continue
        kept += 1
        assert cache.tokens == length
        expected = cache_of(length)
        for place in range(2):  # one at a time, as the window was cut
            new = NEXT[:, place : place + 1]
            torch.testing.assert_close(go_on(model, cache, new), go_on(model, expected, new), rtol=0, atol=1e-9)
    assert kept >= 4 and refused >= 7


def test_a_question_that_was_asked_of_a_memory_is_not_shortened_unnoticed(model: PeftModel) -> None:
    memory, question = model.encode(IDS), random_ids(8, seed=4)[None]
    cache = read(model, question, memory=memory)
    for place in range(4):
        go_on(model, cache, NEXT[:, place : place + 1])
    with refusal("`crop`", "9 tokens back", model=model):
        cache.crop(-9)
    cache.crop(-3)
    expected = read(model, question, memory=memory)
    go_on(model, expected, NEXT[:, :1])
    torch.testing.assert_close(go_on(model, cache, NEXT[:, :2]), go_on(model, expected, NEXT[:, :2]))


# Copies


@pytest.mark.parametrize("storage", ["device", "cpu", "int8", "disk"])
@pytest.mark.parametrize("options", [{}, {"decoding": "exact"}, {"read_chunks": 1}], ids=str)
@pytest.mark.parametrize("with_memory", [False, True])
def test_a_copy_of_a_cache_goes_on_by_itself(storage: str, options: dict[str, Any], with_memory: bool) -> None:
    model = make_focus_model(storage=storage, **options)
    given = {"memory": model.encode(random_ids(20, seed=8))} if with_memory else {}
    cache = read(model, **given)
    expected, other = go_on(model, read(model, **given)), go_on(model, read(model, **given), NEXT.flip(1))
    for make in (copy.deepcopy, copy.copy):
        one = make(cache)
        assert one.reader is cache.reader and one.memory is cache.memory, "neither model nor memory is copied"
        torch.testing.assert_close(go_on(model, one, NEXT.flip(1)), other, rtol=0, atol=1e-9)
        assert one.tokens == cache.tokens + 4
    for place in range(12):  # past the next spill
        go_on(model, one, IDS[:, place : place + 1])
    # behind a memory that others have asked in between, prompts are read again, in a pass of another shape
    torch.testing.assert_close(go_on(model, cache), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ids", [IDS, IDS[:, :5]], ids=["chunks", "no chunks"])
def test_one_beginning_is_copied_for_many_questions(model: PeftModel, ids: torch.Tensor) -> None:
    begun = read(model, ids)
    for seed in range(3):
        whole = torch.cat([ids, random_ids(5, seed=seed)[None]], dim=1)
        output = model.generate(whole, **{CACHE: copy.deepcopy(begun)}, **GREEDY)
        assert torch.equal(output.sequences, model.generate(whole, **{CACHE: read(model, ids)}, **GREEDY).sequences)
    assert begun.tokens == ids.shape[1]


def test_a_copied_model_has_caches_of_its_own(model: PeftModel) -> None:
    both = copy.deepcopy({"cache": read(model), "model": model})
    assert both["model"].base_model.reader is not model.base_model.reader
    assert torch.equal(go_on(model, both["cache"]), go_on(both["model"], read(both["model"])))


def test_a_cache_cannot_be_pickled(model: PeftModel) -> None:
    with refusal(f"`{CACHE}`", "pickled", "token ids", error=TypeError):
        pickle.dumps(read(model))


UNDONE: dict[str, Callable[[Any], Any]] = {
    "batch_repeat_interleave": lambda cache: cache.batch_repeat_interleave(2),
    "batch_select_indices": lambda cache: cache.batch_select_indices(torch.tensor([0])),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("name", UNDONE)
def test_what_a_cache_would_leave_undone_is_refused(model: PeftModel, name: str) -> None:
    assert hasattr(DynamicCache(), name)
    with refusal(f"`{name}`", f"`{CACHE}`", "again"):
        UNDONE[name](read(model))
