"""How far the reading of a document is, is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_focus_model

from focus_peft.memory.progress import telling_progress


@pytest.fixture(scope="module")
def model() -> Any:
    return make_focus_model(chunk_size=32, local_size=32, prompt_size=16)


def test_progress_rises_to_one_and_the_memory_is_that_of_encode(model: Any) -> None:
    ids = torch.arange(300)[None] % 50 + 3
    shares: list[float] = []
    with telling_progress(model, 300, shares.append):
        memory = model.encode(ids, chunk_batch_size=2)
    assert shares == [64 / 300, 128 / 300, 192 / 300, 256 / 300, 1.0]  # two chunks at a time; the last is short
    (found,) = model.chunk_attention(ids[:, :20], memory=memory)
    (expected,) = model.chunk_attention(ids[:, :20], memory=model.encode(ids))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_no_hook_is_left_behind_even_if_reading_fails(model: Any) -> None:
    with pytest.raises(InterruptedError), telling_progress(model, 40, lambda share: _raise()):
        model.encode(torch.full((1, 40), 5))
    assert not model.get_base_model().base_model._forward_hooks


def _raise() -> None:
    raise InterruptedError
