"""`model.keeping_chunks`: what comes from the pool is what would have been read, and how much is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_focus_model, perturb_twins, random_ids, small_config
from peft import PeftModel
from refusal import refusal


DOCUMENT = random_ids(32, seed=1)  # four chunks of 8
STORAGES = ("device", "cpu", "int8", "disk")


def asked(question: int) -> torch.Tensor:
    """The document and what is asked about it, which fills the local window."""
    return torch.tensor([list(DOCUMENT) + list(random_ids(8, seed=question))])


def logits(model: PeftModel, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model(ids, logits_to_keep=1, **options).logits


def chunk_tokens(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the tokens of each chunk that is read."""
    read: list[int] = []
    original = model.base_model._reader._read_chunks

    def counted(store: Any, first: int, chunks: Any, *rest: Any) -> None:
        read.extend(map(len, chunks))
        original(store, first, chunks, *rest)

    monkeypatch.setattr(model.base_model._reader, "_read_chunks", counted)
    return read


@pytest.mark.parametrize("storage", STORAGES)
def test_questions_about_the_same_text_read_it_once_and_are_answered_alike(
    model: PeftModel, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [logits(model, asked(question), storage=storage) for question in (2, 3, 4)]
    read = chunk_tokens(model, monkeypatch)
    with model.keeping_chunks() as pool:
        found = [logits(model, asked(question), storage=storage) for question in (2, 3, 4)]
    assert all(map(torch.equal, found, wanted))
    assert (pool.misses, pool.hits) == (4, 8) and read == [8] * 4


def test_a_chunk_at_another_place_or_with_another_token_is_read(model: PeftModel) -> None:
    ids = asked(2)
    moved = torch.cat([ids[:, 8:16], ids[:, :8], ids[:, 16:]], dim=1)  # the first two chunks change places
    changed = ids.clone()
    changed[0, 9] += 1
    wanted = [logits(model, one) for one in (ids, moved, changed)]
    with model.keeping_chunks() as pool:
        found = [logits(model, one) for one in (ids, moved, changed)]
    assert all(map(torch.equal, found, wanted))
    assert (pool.misses, pool.hits) == (4 + 2 + 1, 2 + 3)


def test_the_next_adapter_and_a_memory_take_the_same_chunks() -> None:
    model = make_focus_model()
    model.add_adapter("other", small_config())
    model.set_adapter("other")
    perturb_twins(model, seed=9)
    wanted = logits(model, asked(2))
    model.set_adapter("default")
    assert not torch.equal(logits(model, asked(2)), wanted)
    with model.keeping_chunks() as pool:
        logits(model, asked(2))
        model.set_adapter("other")
        assert torch.equal(logits(model, asked(2)), wanted)
        model.encode(DOCUMENT)
    assert (pool.misses, pool.hits) == (4, 8)


def test_generation_goes_on_with_chunks_that_the_window_spills(model: PeftModel) -> None:
    def answer() -> torch.Tensor:
        return model.generate(asked(2), max_new_tokens=20, do_sample=False, eos_token_id=None)

    wanted = answer()
    with model.keeping_chunks() as pool:
        first = answer()
        missed = pool.misses
        again = answer()
    assert torch.equal(first, wanted) and torch.equal(again, wanted)
    assert missed > 4 and pool.misses == missed == pool.hits


def test_what_has_no_room_is_read_again(model: PeftModel) -> None:
    wanted = logits(model, asked(2))
    with model.keeping_chunks() as pool:
        model.encode(DOCUMENT)
    one = pool._held / 4
    for chunks in (0.5, 2.5):
        with model.keeping_chunks(chunks * one / 2**30) as pool:
            for _ in range(5):
                assert torch.equal(logits(model, asked(2)), wanted)
        assert pool._held <= chunks * one
        assert pool.hits + pool.misses == 20 and (pool.hits > 0) == (chunks > 1)


@pytest.mark.parametrize("first", STORAGES)
def test_chunks_that_a_storage_rounds_do_not_come_back_in_another(model: PeftModel, first: str) -> None:
    wanted = {storage: logits(model, asked(2), storage=storage) for storage in STORAGES}
    with model.keeping_chunks():
        for storage in (first, *STORAGES):
            assert torch.equal(logits(model, asked(2), storage=storage), wanted[storage])


def test_outside_of_the_context_nothing_is_kept(model: PeftModel) -> None:
    with pytest.raises(RuntimeError, match="stop"), model.keeping_chunks():
        logits(model, asked(2))
        raise RuntimeError("stop")
    assert model.base_model._reader.pool is None
    for gigabytes in (0, -1, "4", True):
        with refusal("`gigabytes`", repr(gigabytes), "above 0"), model.keeping_chunks(gigabytes):
            pass
