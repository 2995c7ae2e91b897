"""Padding: rows that are padded in any way, in any turn, are answered as they are alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import PAD, make_focus_model, pad_rows, random_ids
from peft import PeftModel
from refusal import refusal

from focus_peft.frozen.compat import CACHE


GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": PAD}
families = pytest.mark.parametrize("family", ["llama", "gpt2"])


def alone(model: PeftModel, rows: list[torch.Tensor], count: int) -> list[list[int]]:
    """What each row is answered by itself."""
    return [model.generate(row[None], max_new_tokens=count, **GREEDY)[0, len(row) :].tolist() for row in rows]


def padded(row: torch.Tensor, left: int, right: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = ([value] * left + list(part) + [value] * right for part, value in ((row, PAD), ([1] * len(row), 0)))
    return torch.tensor([ids]), torch.tensor([mask])


@families
@pytest.mark.parametrize("positions", [False, True], ids=["no positions", "positions"])
@pytest.mark.parametrize("form", ["none", "new columns", "all columns"])
@pytest.mark.parametrize("lengths", [(6, 3), (30, 20), (30, 3)], ids=str)
def test_a_loop_over_padded_rows_may_give_any_mask(
    lengths: tuple[int, int], form: str, positions: bool, family: str
) -> None:
    model = make_focus_model(family)
    rows = [random_ids(length, seed=length) for length in lengths]
    new, mask = pad_rows(rows)
    cache, found = None, []
    with torch.no_grad():
        for step in range(12):  # past the end of a window
            given = mask if not step or form == "all columns" else mask[:, -1:] if form == "new columns" else None
            where = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, -new.shape[1] :]} if positions else {}
            output = model(new, attention_mask=given, use_cache=True, **where, **{CACHE: cache})
            cache, new = output[CACHE], output.logits[:, -1:].argmax(-1)
            mask = torch.cat([mask, torch.ones_like(new)], dim=1)
            found.append(new)
    assert torch.cat(found, dim=1).tolist() == alone(model, rows, 12)


def test_a_mask_of_other_columns_is_refused() -> None:
    model = make_focus_model()
    output = model(random_ids(6)[None], use_cache=True)
    with refusal("`attention_mask` has the shape (1, 5), but `input_ids` has (1, 1)", model=model):
        model(random_ids(1)[None], attention_mask=torch.ones(1, 5), **{CACHE: output[CACHE]})


@pytest.mark.parametrize("length", [4, 30])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"return_dict_in_generate": True}], ids=str)
def test_what_comes_back_is_as_wide_as_the_input_and_what_is_new(length: int, options: dict[str, Any]) -> None:
    model, row = make_focus_model(), random_ids(length, seed=5)
    ids, mask = padded(row, left=2, right=9)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=7, **options, **GREEDY)
    sequences = found if isinstance(found, torch.Tensor) else found.sequences
    assert sequences.shape == (1, ids.shape[1] + 7)
    if not options.get("num_beams") and not (length == 4 and not options):  # that is the base model's own way
        assert sequences[0, ids.shape[1] :].tolist() == alone(model, [row], 7)[0]


@families
@pytest.mark.parametrize("before, after", [((0, 0), (3, 0)), ((3, 0), (0, 0)), ((5, 0), (2, 0)), ((0, 4), (1, 6))])
@pytest.mark.parametrize("length", [3, 30])
def test_a_turn_may_be_padded_in_another_way_than_the_one_before(
    length: int, before: tuple[int, int], after: tuple[int, int], family: str
) -> None:
    model, row, options = make_focus_model(family), random_ids(length, seed=5), {"max_new_tokens": 5, **GREEDY}

    def turns(before: tuple[int, int], after: tuple[int, int]) -> list[int]:
        ids, mask = padded(row, *before)
        first = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options)
        ids, mask = padded(torch.cat([row, first.sequences[0, -5:], random_ids(2, seed=6)]), *after)
        return model.generate(ids, attention_mask=mask, **options, **{CACHE: first[CACHE]})[0, ids.shape[1] :].tolist()

    assert turns(before, after) == turns((0, 0), (0, 0))
