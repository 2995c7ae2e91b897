"""What callers have set around a call or beside the model: inference mode, a generation config that names caches, and
loops that hand over a second turn with all that was read before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import random_ids
from peft import PeftModel

from focus_peft.frozen.compat import CACHE


GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "return_dict_in_generate": True}


def a_memory(model: PeftModel, begins: Any, goes_on: Any) -> torch.Tensor:
    with begins:
        memory = model.encode(random_ids(40))
    with goes_on:
        return model.generate(random_ids(6, seed=1)[None], memory=memory, **GREEDY).sequences


def an_extended_memory(model: PeftModel, begins: Any, goes_on: Any) -> torch.Tensor:
    with begins:
        memory = model.encode(random_ids(40))
    with goes_on:
        memory = model.encode(random_ids(9, seed=2), memory=memory)
    return model.generate(random_ids(6, seed=1)[None], memory=memory, **GREEDY).sequences


def a_conversation(model: PeftModel, begins: Any, goes_on: Any, **options: Any) -> torch.Tensor:
    with begins:
        output = model.generate(random_ids(40)[None], **GREEDY, **options)
    row = torch.cat([output.sequences[:1], random_ids(3, seed=3)[None]], dim=1)
    with goes_on:
        return model.generate(row, **GREEDY, **{CACHE: output[CACHE]}).sequences


def beams(model: PeftModel, begins: Any, goes_on: Any) -> torch.Tensor:
    cache = model(random_ids(40)[None].repeat(2, 1), use_cache=True)[CACHE]
    with begins:
        cache.reorder_cache(torch.tensor([1, 0]))
    with goes_on:
        return model(torch.tensor([[5], [6]]), use_cache=True, **{CACHE: cache}).logits


def reading(model: PeftModel, begins: Any, goes_on: Any) -> torch.Tensor:
    return a_conversation(model, begins, goes_on, read_chunks=1)


@pytest.mark.parametrize("call", [a_memory, an_extended_memory, a_conversation, beams, reading])
@pytest.mark.parametrize("inside_first", [True, False])
def test_inference_mode_may_begin_or_end_between_calls(
    model: PeftModel, call: Callable[..., torch.Tensor], inside_first: bool
) -> None:
    expected = call(model, contextlib.nullcontext(), contextlib.nullcontext())
    modes = [torch.inference_mode(), contextlib.nullcontext()]
    found = call(model, *(modes if inside_first else modes[::-1]))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("length", [40, 6], ids=["long", "short"])
@pytest.mark.parametrize("options", [{}, {"read_chunks": 1}], ids=["candidates", "read"])
def test_drafts_in_a_second_turn(model: PeftModel, length: int, options: dict[str, Any]) -> None:
    turns = []
    for drafts in ({}, {"prompt_lookup_num_tokens": 3}):
        output = model.generate(random_ids(length)[None], **{**GREEDY, "max_new_tokens": 2}, **options)
        row = torch.cat([output.sequences, random_ids(4, seed=3).repeat(2)[None]], dim=1)
        output = model.generate(row, **GREEDY, **{CACHE: output[CACHE]}, **drafts)
        assert output[CACHE].tokens == output.sequences.shape[1] - 1
        turns.append(output.sequences)
    assert torch.equal(*turns)
