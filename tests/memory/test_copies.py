"""Copies of a memory, in this process and in others."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from conftest import make_focus_model, random_ids
from peft import PeftModel
from refusal import refusal

from focus_peft import Memory


DOCUMENT = random_ids(30, seed=1)
QUESTIONS = [random_ids(6, seed=seed)[None] for seed in (2, 3)]
STORAGES = ["device", "cpu", "int8", "disk"]


def answer(model: PeftModel, memory: Memory, question: torch.Tensor = QUESTIONS[0]) -> torch.Tensor:
    return model.generate(question, memory=memory, max_new_tokens=12, do_sample=False)  # spills


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy])
def test_a_copy_answers_as_the_memory_does(model: PeftModel, make: Callable[[Memory], Memory], storage: str) -> None:
    memory = model.encode([DOCUMENT, DOCUMENT[:5]], storage=storage)
    questions = torch.cat(QUESTIONS)
    expected = answer(model, memory, questions)
    with torch.inference_mode():
        copied = make(memory)
    assert copied.storage == storage and copied.num_chunks == memory.num_chunks and copied.nbytes == memory.nbytes
    assert copied.lock is not memory.lock
    for one in (copied, memory, copied):
        assert torch.equal(answer(model, one, questions), expected)
    for layer in memory.store.layers:
        for side in layer:
            side.zero_()
    assert torch.equal(answer(model, copied, questions), expected), "its states are its own"
    extended = model.encode([DOCUMENT[:3]] * 2, memory=copied)
    assert extended.num_tokens == 41


def test_two_copies_are_asked_in_turn(model: PeftModel) -> None:
    memory = model.encode(DOCUMENT)
    caches, new = [], random_ids(3, seed=9)[None]
    for question, one in zip(QUESTIONS, (memory, copy.deepcopy(memory))):
        caches.append(model(question, memory=one, use_cache=True).past_key_values)
    found = [model(new, past_key_values=cache).logits for cache in caches]
    for question, logits in zip(QUESTIONS, found):
        alone = model(question, memory=model.encode(DOCUMENT), use_cache=True).past_key_values
        assert torch.equal(model(new, past_key_values=alone).logits, logits)


@pytest.mark.parametrize("storage", STORAGES[:3])
def test_a_pickled_memory_is_asked_elsewhere(model: PeftModel, storage: str) -> None:
    memory = model.encode(DOCUMENT, storage=storage)
    expected = answer(model, memory)
    there = pickle.loads(pickle.dumps(memory))
    assert torch.equal(answer(make_focus_model(), there), expected)
    with refusal("`memory`", "another model", model=model):
        answer(make_focus_model(base={"seed": 3}), there)


def test_files_of_a_process_cannot_be_pickled(model: PeftModel) -> None:
    with refusal("disk", "`memory.save(directory)`", error=TypeError):
        pickle.dumps(model.encode(DOCUMENT, storage="disk"))
