"""What the benchmark of training compares with is the same computation: same loss, same gradients."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from conftest import make_focus_model
from training import assert_equal_to, assert_same_gradients, document, gradients_of

from focus_peft.objectives import focus_loss
from focus_peft.sampling import Sample, Span


@pytest.mark.parametrize("decoding", ["streaming", "exact"])
@pytest.mark.parametrize("r", [None, 4])
def test_the_naive_losses_and_their_gradients_are_those_of_focus_loss(
    decoding: str, r: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    naive: Any = importlib.import_module("naive")
    model = make_focus_model(decoding=decoding, r=r).train()
    tuner: Any = model.base_model
    ids, sample = document(40), Sample(24, 8, Span(24, 8, 3), Span(10, 7, 3))
    expected = focus_loss(tuner.reader, tuner.settings(), tuner.active_config, [ids], [ids], [sample]).loss
    wanted = gradients_of(model, expected)
    found = naive.naive_loss(tuner, ids, sample)
    assert_equal_to(found, expected)
    assert_same_gradients(gradients_of(model, found), wanted, none_is_zero=True)
