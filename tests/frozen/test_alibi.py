"""Biases of ALiBi, and models that were cast since."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tiny_model

from focus_peft.frozen.alibi import Alibi


@pytest.mark.parametrize("family", ["bloom", "falcon_alibi"])
def test_biases_are_those_of_the_type_that_the_model_has_now(family: str) -> None:
    base = make_tiny_model(family, torch.bfloat16)
    alibi, index, mask = Alibi.of(base), torch.arange(1000)[None], torch.zeros(1, 1, 1, 1000)
    assert alibi is not None
    alibi.given(index, mask.bfloat16())
    base.float()
    fresh = Alibi.of(base)
    assert fresh is not None
    assert torch.equal(alibi.given(index, mask)["attention_mask"], fresh.given(index, mask)["attention_mask"])
