"""`Memory`: how it is made, extended, saved, loaded, copied, and refused. What is answered from it:
test_decoding.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    make_focus_model,
    make_tiny_tokenizer,
    pad_rows,
    perturb_twins,
    random_ids,
    small_config,
)
from peft import PeftModel
from refusal import no_file_larger_than, refusal, refused_everywhere
from safetensors.torch import load_file

from focus_peft import Memory
from focus_peft.memory.progress import telling_progress


DOCUMENT = random_ids(30, seed=1)  # four chunks of 8, the last one ragged
QUESTION = random_ids(6, seed=2)[None]
FILES = ["memory.json", "memory.safetensors"]


@pytest.fixture(scope="module")
def saved(model: PeftModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the memory of DOCUMENT, tokenizer included."""
    directory = tmp_path_factory.mktemp("memories") / "saved"
    model.encode(DOCUMENT).save(directory, tokenizer=make_tiny_tokenizer())
    return directory


def answer(model: PeftModel, memory: Memory) -> torch.Tensor:
    return model(QUESTION, memory=memory).logits


def states(memory: Memory) -> list[torch.Tensor]:
    """What has been read, without the room for prompts behind it: per row, layer and side (heads, tokens, dim)."""
    return [
        side[number, :, : row.length].clone()
        for number, row in enumerate(memory.rows)
        for layer in memory.store.layers
        for side in layer
    ]


def same_states(one: Memory, other: Memory) -> bool:
    mine, theirs = states(one), states(other)
    return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


# What can be encoded


def test_a_memory_says_what_it_holds(model: PeftModel) -> None:
    memory = model.encode([DOCUMENT, DOCUMENT[:5]])
    assert (memory.num_documents, memory.num_chunks, memory.num_tokens) == (2, 5, 35)
    assert [memory.chunks_of(document) for document in (0, 1)] == [4, 1]
    assert memory.chunk_size == 8
    assert memory.device == torch.device("cpu")
    # 2 layers, keys and values, 2 heads of 8 dimensions in float64, for at least each chunk's tokens
    assert memory.nbytes >= 5 * 8 * 2 * 2 * 2 * 8 * 8
    assert memory.nbytes == sum(side.numel() * 8 for layer in memory.store.layers for side in layer)
    assert repr(memory).startswith("Memory(2 documents, 35 tokens, 5 chunks of 8")


@pytest.mark.parametrize(
    "form",
    [
        lambda ids: ids,
        lambda ids: ids[None],
        lambda ids: ids.tolist(),
        lambda ids: tuple(ids.tolist()),
        lambda ids: [ids],
        lambda ids: (ids,),
        lambda ids: [ids.tolist()],
        lambda ids: ids.to(torch.int32),
        lambda ids: ids.numpy(),
        lambda ids: [ids.numpy()],
    ],
    ids=["1-D", "2-D", "list", "tuple", "tensors", "tuple of tensors", "lists", "int32", "array", "arrays"],
)
def test_a_document_is_the_same_in_every_form(model: PeftModel, form: Callable[[torch.Tensor], Any]) -> None:
    memory = model.encode(form(DOCUMENT))
    assert memory.documents == [DOCUMENT.tolist()]
    assert same_states(memory, model.encode(DOCUMENT[None]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_documents_are_the_same_as_a_list(model: PeftModel, side: str) -> None:
    rows = [DOCUMENT, DOCUMENT[3:12], DOCUMENT[5:6]]
    ids, mask = pad_rows(rows, side)
    for attention_mask in (mask, mask.bool(), mask.float()):
        memory = model.encode(ids, attention_mask=attention_mask)
        assert memory.documents == [row.tolist() for row in rows]
        assert same_states(memory, model.encode(rows))


def test_a_memory_holds_no_trainable_weight() -> None:
    model = make_focus_model()
    before = model.encode(DOCUMENT)
    perturb_twins(model, std=1.0)
    assert same_states(model.encode(DOCUMENT), before)
    assert not any(side.requires_grad for layer in before.store.layers for side in layer)


# Extending


def test_extending_reads_only_what_is_new(model: PeftModel) -> None:
    old = model.encode(DOCUMENT[:16])
    read: list[torch.Tensor] = []
    inner = model.get_base_model().base_model
    handle = inner.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True
    )
    model.encode(DOCUMENT[16:], memory=old)
    handle.remove()
    assert sum(ids.numel() for ids in read) <= 16  # two chunks, the ragged one padded


def test_a_document_for_each_row_must_be_given(model: PeftModel) -> None:
    memory = model.encode([DOCUMENT, DOCUMENT[:5]])
    with refusal("`document_ids`", "1 rows", "`memory`", "2 documents", model=model):
        model.encode(DOCUMENT, memory=memory)


# Saving and loading


def test_a_directory_holds_two_files_and_the_sizes_can_be_read(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == FILES
    description = json.loads((saved / "memory.json").read_text())
    assert description["documents"] == [DOCUMENT.tolist()]
    assert description["chunk_size"] == 8
    assert description["model"]["model_type"] == "llama"
    tensors = load_file(saved / "memory.safetensors")
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(4, 2, 8, 8)}  # no room for prompts


def test_questions_leave_what_was_read_as_it_is(model: PeftModel, tmp_path: Path) -> None:
    memory = model.encode(DOCUMENT)
    first = answer(model, memory)
    memory.save(tmp_path / "before")
    for decoding in ("streaming", "exact"):
        model.generate(random_ids(20, seed=5)[None], memory=memory, max_new_tokens=30, decoding=decoding)
    memory.save(tmp_path / "after")
    for name in FILES:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    assert torch.equal(answer(model, memory), first)


@pytest.mark.parametrize("form", [str, Path])
def test_missing_parents_are_made_and_an_empty_directory_is_used(
    model: PeftModel, form: Callable[[Path], Any], tmp_path: Path
) -> None:
    memory = model.encode(DOCUMENT)
    memory.save(form(tmp_path / "some" / "where"))
    (tmp_path / "empty").mkdir()
    memory.save(form(tmp_path / "empty"))
    for place in (tmp_path / "some" / "where", tmp_path / "empty"):
        assert sorted(path.name for path in place.iterdir()) == FILES
        assert same_states(model.load_memory(form(place)), memory)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "some"]


def test_the_current_directory_can_be_used_if_it_is_empty(
    model: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.encode(DOCUMENT).save(".")
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert model.load_memory(".").num_tokens == 30


def test_others_may_read_a_memory_as_far_as_the_umask_allows(model: PeftModel, tmp_path: Path) -> None:
    for umask, expected in ((0o022, (0o755, 0o644)), (0o077, (0o700, 0o600))):
        previous = os.umask(umask)
        try:
            directory = tmp_path / oct(umask)
            model.encode(DOCUMENT).save(directory)
        finally:
            os.umask(previous)
        assert stat.S_IMODE(directory.stat().st_mode) == expected[0]
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {expected[1]}


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(model: PeftModel, tmp_path: Path) -> None:
    memory = model.encode(DOCUMENT)
    memory.save(tmp_path / "memory")
    before = {path.name: path.read_bytes() for path in (tmp_path / "memory").iterdir()}
    with refusal("`directory`", str(tmp_path / "memory"), "not empty", error=FileExistsError):
        model.encode(DOCUMENT[:9]).save(tmp_path / "memory")
    assert {path.name: path.read_bytes() for path in (tmp_path / "memory").iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with refusal("`directory`", str(tmp_path / "file"), error=FileExistsError):
        memory.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "memory"]


@pytest.mark.parametrize("size", [0, 50, 4000])
@pytest.mark.parametrize("target", ["new", "empty"])
def test_a_save_that_fails_leaves_nothing_behind_and_can_be_repeated(
    model: PeftModel, target: str, size: int, tmp_path: Path
) -> None:
    memory = model.encode(DOCUMENT)
    if target == "empty":
        (tmp_path / target).mkdir()
    with refusal("`directory`", str(tmp_path / target), error=OSError), no_file_larger_than(size):
        memory.save(tmp_path / target)
    assert [path.name for path in tmp_path.rglob("*")] == (["empty"] if target == "empty" else [])
    memory.save(tmp_path / target)
    assert same_states(model.load_memory(tmp_path / target), memory)


def test_a_directory_without_a_memory_is_refused(model: PeftModel, saved: Path, tmp_path: Path) -> None:
    for missing in (None, *FILES):
        directory = tmp_path / str(missing)
        if missing is not None:
            shutil.copytree(saved, directory)
            (directory / missing).unlink()
        with refusal("`directory`", str(directory), "`model.encode(", error=FileNotFoundError):
            model.load_memory(directory)


# Whose memory it is


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: make_focus_model(base={"seed": 5}), "weights"),
        (lambda: make_focus_model(dtype=torch.float32), "torch.float32"),
        (lambda: make_focus_model("gpt2"), "gpt2"),
        (lambda: make_focus_model(base={"num_hidden_layers": 3}), "3 layers"),
        (lambda: make_focus_model("mistral", base={"sliding_window": None}), "mistral"),
    ],
    ids=["other weights", "other type", "other family", "other depth", "same shapes"],
)
def test_a_memory_of_another_model_is_refused(
    model: PeftModel, saved: Path, make: Callable[[], PeftModel], named: str
) -> None:
    other, memory = make(), model.encode(DOCUMENT)
    with refusal("memory", "another model", named, "encode", model=other):
        other.load_memory(saved)
    refused_everywhere(other, memory, "`memory`", "another model", named, "encode")


def test_a_changed_weight_makes_another_model(saved: Path) -> None:
    for name in ("lm_head", "norm", "embed_tokens", "down_proj", "base_layer"):
        other = make_focus_model()
        parameter = next(p for path, p in other.get_base_model().named_parameters() if name in path)
        with torch.no_grad():
            parameter.mul_(1.01)
        with refusal("another model", model=other):
            other.load_memory(saved)


def test_adapters_and_dropout_do_not_make_another_model(model: PeftModel, saved: Path) -> None:
    for fields in (
        {"r": 2},
        {"target_modules": ["q_proj"]},
        {"local_size": 12, "prompt_size": 6},
        {"decoding": "exact"},
    ):
        other = make_focus_model(base={"attention_dropout": 0.1}, **fields)
        memory = other.load_memory(saved)
        expected = other.encode(DOCUMENT)
        torch.testing.assert_close(answer(other, memory), answer(other, expected), rtol=0, atol=1e-6)


def test_a_memory_of_another_tokenizer_is_refused(model: PeftModel, saved: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    assert model.load_memory(saved, tokenizer=tokenizer).num_tokens == 30
    assert model.load_memory(saved).num_tokens == 30
    tokenizer.add_tokens(["another"])
    with refusal("memory", str(saved), "another tokenizer", "encode", model=model):
        model.load_memory(saved, tokenizer=tokenizer)


def two_adapters(**fields: Any) -> PeftModel:
    model = make_focus_model()
    model.add_adapter("second", small_config(**fields))
    perturb_twins(model, seed=7)
    return model


def test_two_adapters_of_one_chunk_size_share_a_memory() -> None:
    model = two_adapters(r=2, local_size=12, prompt_size=6, decoding="exact")
    memory = model.encode(DOCUMENT)
    first = answer(model, memory)
    model.set_adapter("second")
    second = answer(model, memory)
    torch.testing.assert_close(second, answer(model, model.encode(DOCUMENT)), rtol=0, atol=1e-6)
    assert not torch.allclose(first, second)
    model.set_adapter("default")
    assert torch.equal(answer(model, memory), first)


def test_two_adapters_of_different_chunk_sizes_do_not_share_a_memory(saved: Path) -> None:
    model = two_adapters(chunk_size=5)
    memory = model.encode(DOCUMENT)
    model.set_adapter("second")
    named = ("`memory`", "chunks of 8", "chunks of 5", "encode")
    with refusal(*named, model=model):
        model.load_memory(saved)
    refused_everywhere(model, memory, *named)
    model.set_adapter("default")
    assert torch.isfinite(answer(model, memory)).all()


def test_a_memory_on_another_device_is_refused_with_the_remedy(model: PeftModel) -> None:
    memory = model.encode(DOCUMENT)
    assert memory.to("cpu") is memory and torch.isfinite(answer(model, memory)).all()
    with refusal("`device` is torch.float16", "`encode`"):
        memory.to(torch.float16)  # type: ignore[arg-type]
    elsewhere = memory.to("meta")
    assert elsewhere.device == torch.device("meta")
    refused_everywhere(model, elsewhere, "`memory`", "meta", "cpu", "`memory.to('cpu')`")


def test_saving_waits_for_the_request_that_asks_the_memory(model: PeftModel, tmp_path: Path) -> None:
    memory = model.encode(DOCUMENT, storage="int8")
    closed: list[bool] = []
    memory.store.close = lambda: closed.append(True)
    with memory.lock:
        saving = threading.Thread(target=memory.save, args=(tmp_path / "saved",))
        saving.start()
        saving.join(0.3)
        assert not closed and saving.is_alive()
    saving.join(30)
    assert closed and sorted(path.name for path in (tmp_path / "saved").iterdir()) == FILES


# Copies, in this process and in others


QUESTIONS = [QUESTION, random_ids(6, seed=3)[None]]
STORAGES = ["device", "cpu", "int8", "disk"]


def generated(model: PeftModel, memory: Memory, question: torch.Tensor = QUESTION) -> torch.Tensor:
    return model.generate(question, memory=memory, max_new_tokens=12, do_sample=False)  # spills


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy])
def test_a_copy_answers_as_the_memory_does(model: PeftModel, make: Callable[[Memory], Memory], storage: str) -> None:
    memory = model.encode([DOCUMENT, DOCUMENT[:5]], storage=storage)
    questions = torch.cat(QUESTIONS)
    expected = generated(model, memory, questions)
    with torch.inference_mode():
        copied = make(memory)
    assert copied.storage == storage and copied.num_chunks == memory.num_chunks and copied.nbytes == memory.nbytes
    assert copied.lock is not memory.lock
    for one in (copied, memory, copied):
        assert torch.equal(generated(model, one, questions), expected)
    for layer in memory.store.layers:
        for side in layer:
            side.zero_()
    assert torch.equal(generated(model, copied, questions), expected), "its states are its own"
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
    expected = generated(model, memory)
    there = pickle.loads(pickle.dumps(memory))
    assert torch.equal(generated(make_focus_model(), there), expected)
    with refusal("`memory`", "another model", model=model):
        generated(make_focus_model(base={"seed": 3}), there)


def test_files_of_a_process_cannot_be_pickled(model: PeftModel) -> None:
    with refusal("disk", "`memory.save(directory)`", error=TypeError):
        pickle.dumps(model.encode(DOCUMENT, storage="disk"))


# How far the reading of a document is, is told


def test_progress_rises_to_one_and_the_memory_is_that_of_encode() -> None:
    model = make_focus_model(chunk_size=32, local_size=32, prompt_size=16)
    ids = torch.arange(300)[None] % 50 + 3
    shares: list[float] = []
    with telling_progress(model, 300, shares.append):
        memory = model.encode(ids, chunk_batch_size=2)
    assert shares == [64 / 300, 128 / 300, 192 / 300, 256 / 300, 1.0]  # two chunks at a time; the last is short
    (found,) = model.chunk_attention(ids[:, :20], memory=memory)
    (expected,) = model.chunk_attention(ids[:, :20], memory=model.encode(ids))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_no_hook_is_left_behind_even_if_reading_fails(model: PeftModel) -> None:
    def stop(share: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), telling_progress(model, 40, stop):
        model.encode(torch.full((1, 40), 5))
    assert not model.get_base_model().base_model._forward_hooks
