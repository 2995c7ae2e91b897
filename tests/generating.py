"""A model under test beside its slow reference, and what both generate."""

from __future__ import annotations

import functools
from typing import Any

import torch
from conftest import make_focus_model, make_tiny_model
from peft import PeftModel
from reference import Reference
from torch import nn


MODES = ["exact", "streaming"]
GENERATED = {"rtol": 0, "atol": 1e-5}
TIGHT = {"rtol": 0, "atol": 1e-9}


def make_pair(family: str = "llama", base: dict[str, Any] | None = None, **fields: Any) -> tuple[PeftModel, Reference]:
    """A model under test and the reference that it is compared with; without `base`, tests share them."""
    if base is None:
        return _shared_pair(family, **fields)
    model = make_focus_model(family, base=base, **fields)
    return model, Reference(make_tiny_model(family, **base), model)


@functools.cache
def _shared_pair(family: str, **fields: Any) -> tuple[PeftModel, Reference]:
    model = make_focus_model(family, **fields)
    return model, Reference(make_tiny_model(family), model)


def generate(model: nn.Module, ids: torch.Tensor, new_tokens: int = 12, **options: Any) -> Any:
    """The output object of a greedy generation with raw logits, after ids of shape (tokens,) or (rows, tokens)."""
    return model.generate(
        input_ids=ids if ids.dim() == 2 else ids[None],
        **{
            "max_new_tokens": new_tokens,
            "do_sample": False,
            "return_dict_in_generate": True,
            "output_logits": True,
            **options,
        },
    )


def assert_row_is(
    output: Any,
    row: int,
    width: int,
    expected: tuple[torch.Tensor, torch.Tensor],
    tolerance: dict[str, float] = GENERATED,
) -> None:
    """Row `row` of an output that started from `width` columns has the expected tokens and logits."""
    tokens, logits = expected
    found = torch.stack([step[row] for step in output.logits])
    assert output.sequences[row, width:].tolist() == tokens.tolist()
    torch.testing.assert_close(found.double(), logits.double(), **tolerance)


def ones(ids: torch.Tensor) -> torch.Tensor:
    """The mask of one row without padding; without a mask, a generated pad token would be taken for padding."""
    return torch.ones(1, len(ids), dtype=torch.long)
