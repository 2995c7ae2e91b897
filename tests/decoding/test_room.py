"""Where the positions of a model end: prompts start over and windows spill early, and nothing leaves them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import each_decoding, make_focus_model, make_tiny_model, random_ids
from peft import PeftModel
from reference import Reference

from focus_peft.frozen.compat import CACHE


# positions, and sizes that leave little of them: a prompt grows by 2 tokens and a window by 5 (GPT-2, one chunk)
POSITIONS, SIZES = 18, {"chunk_size": 8, "local_size": 12, "prompt_size": 6}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
MODELS = {
    "learned": ("gpt2", {"max_position_embeddings": POSITIONS}),
    "dynamic": ("llama", {"max_position_embeddings": POSITIONS + 6, **DYNAMIC}),
    "rotary": ("llama", {"max_position_embeddings": POSITIONS + 6}),
}
OPTIONS: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module", params=MODELS)
def kind(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return MODELS[request.param]


def focus_model(kind: tuple[str, dict[str, Any]], **fields: Any) -> PeftModel:
    family, base = kind
    return make_focus_model(family, torch.float64, base, **{**SIZES, **fields})


def reference_of(kind: tuple[str, dict[str, Any]], model: PeftModel, **overrides: Any) -> Reference:
    family, base = kind
    positions = base["max_position_embeddings"]
    return Reference(make_tiny_model(family, **base), model, positions=positions, **overrides)


@each_decoding
def test_decoding_goes_on_where_positions_end(kind: tuple[str, dict[str, Any]], decoding: str) -> None:
    model, ids = focus_model(kind, decoding=decoding), random_ids(30)
    expected, logits = reference_of(kind, model).greedy(ids.tolist(), 20)
    output = model.generate(ids[None], max_new_tokens=20, **OPTIONS)
    torch.testing.assert_close(torch.cat(output.logits).double(), logits, rtol=0, atol=1e-5)
    assert torch.equal(output.sequences[0, 30:], expected)


def test_logits_of_every_token(kind: tuple[str, dict[str, Any]]) -> None:
    model, ids = focus_model(kind), random_ids(44)
    expected = reference_of(kind, model).all_logits(ids.tolist())
    found = model(ids[None]).logits[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    with model.disable_adapter():
        torch.testing.assert_close(found[:12], model(ids[None, :12]).logits[0], rtol=0, atol=1e-9)


def test_drafts_that_are_taken_back_leave_no_trace(kind: tuple[str, dict[str, Any]]) -> None:
    model, ids = focus_model(kind), random_ids(7).repeat(4)[None]
    plain = model.generate(ids, max_new_tokens=18, **OPTIONS)
    drafted = model.generate(ids, max_new_tokens=18, prompt_lookup_num_tokens=4, **OPTIONS)
    assert torch.equal(plain.sequences, drafted.sequences)
    torch.testing.assert_close(torch.stack(drafted.logits), torch.stack(plain.logits), rtol=0, atol=1e-5)


def test_many_turns_stay_within_the_positions() -> None:
    model, ids, cache = focus_model(MODELS["learned"]), random_ids(30)[None], None
    for turn in range(8):
        output = model.generate(ids, max_new_tokens=7, **OPTIONS, **({} if cache is None else {CACHE: cache}))
        cache, ids = output[CACHE], torch.cat([output.sequences, random_ids(5, seed=turn)[None]], dim=1)
    assert cache.streams[0].anchors is not None
    assert len(cache.streams[0].ids) > 5 * POSITIONS


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("sizes", [(100, 20, 20), (20, 120, 4)], ids=["chunk", "window"])
def test_a_memory_in_a_table_that_is_nearly_full(family: str, sizes: tuple[int, int, int]) -> None:
    chunk, local, prompt = sizes
    model = make_focus_model(family, chunk_size=chunk, local_size=local, prompt_size=prompt)
    ids, memory = random_ids(5, seed=1), random_ids(125)
    reference = Reference(make_tiny_model(family), model, positions=128)
    expected, logits = reference.greedy(ids.tolist(), 40, memory.tolist())
    output = model.generate(ids[None], memory=model.encode(memory[None]), max_new_tokens=40, **OPTIONS)
    assert torch.equal(output.sequences[0, 5:], expected)
    torch.testing.assert_close(torch.cat(output.logits).double(), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("road", ["generate", "forward", "encode", "a turn", "a token of one's own loop"])
def test_more_chunks_than_positions_are_refused_on_every_road(road: str) -> None:
    model, ids = focus_model(MODELS["rotary"]), random_ids(100)[None]
    cache = model(ids[:, :40], use_cache=True)[CACHE]
    calls: dict[str, Any] = {
        "generate": lambda: model.generate(ids, max_new_tokens=3, **OPTIONS),
        "forward": lambda: model(ids),
        "encode": lambda: model.encode(random_ids(200)),
        "a turn": lambda: model.generate(ids, max_new_tokens=3, **OPTIONS, **{CACHE: cache}),
        "a token of one's own loop": lambda: model(ids[:, 40:], use_cache=True, **{CACHE: cache}),
    }
    with pytest.raises(ValueError, match=r"candidates, which with BOS and `local_size` \(12\) need .* 24 positions"):
        calls[road]()
    assert cache.tokens == 40
    assert model(ids[:, 40:42], use_cache=True, **{CACHE: cache}).logits.isfinite().all()
