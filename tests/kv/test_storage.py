"""Where chunks are kept: CPU memory and disk change nothing, 8 bits change what a slow reference says, and memory
stays bounded.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, random_ids
from fresh import run_apart
from peft import PeftModel
from refusal import no_file_larger_than, refusal
from safetensors.torch import load_file

from focus_peft import FocusConfig, Memory
from focus_peft.frozen.compat import CACHE
from focus_peft.kv.host import HostStore


DOCUMENTS = [random_ids(45, seed=1), random_ids(13, seed=2)]  # chunks of 8, the last of each ragged
QUESTIONS = torch.stack([random_ids(6, seed=3), random_ids(6, seed=4)])
STORAGES = ["cpu", "int8", "disk"]


@functools.cache
def shared_model() -> PeftModel:
    return make_focus_model()


@pytest.fixture
def model() -> PeftModel:
    return shared_model()


@pytest.fixture(params=["cpu", "cpu, copied", "disk", "disk, copied"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A storage that changes nothing. "copied": the pieces are copied to the model's device, as if that were not the
    CPU.
    """
    storage, _, copied = request.param.partition(", ")
    if copied:
        monkeypatch.setattr(HostStore, "_is_here", lambda *_: False)
    yield storage


def scores(model: PeftModel, ids: torch.Tensor, new_tokens: int = 12, **options: Any) -> torch.Tensor:
    """Logits (tokens, rows, vocabulary) before each generated token; two or more batches of chunks are read."""
    torch.manual_seed(0)
    defaults = {"max_new_tokens": new_tokens, "do_sample": False, "chunk_batch_size": 3}
    output = model.generate(ids, output_logits=True, return_dict_in_generate=True, **{**defaults, **options})
    return torch.stack(output.logits)


def answers(model: PeftModel, storage: str, **options: Any) -> torch.Tensor:
    memory = model.encode(DOCUMENTS, storage=storage, chunk_batch_size=3)
    assert memory.storage == storage
    return scores(model, QUESTIONS, memory=memory, **options)


@functools.cache
def answers_from_the_device(options: str) -> torch.Tensor:
    return answers(shared_model(), "device", **OPTIONS[options])


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "exact": {"decoding": "exact"},
    "a long answer": {"new_tokens": 20},
    "beams": {"num_beams": 3},
    "samples": {"num_return_sequences": 3, "do_sample": True},
    "all chunks at once": {"chunk_batch_size": None},
}


# Storages that change nothing


@pytest.mark.parametrize("options", OPTIONS)
def test_a_memory_elsewhere_equals_one_on_the_device_bit_for_bit(
    model: PeftModel, elsewhere: str, options: str
) -> None:
    assert torch.equal(answers(model, elsewhere, **OPTIONS[options]), answers_from_the_device(options))


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"decoding": "exact"}, {"prompt_lookup_num_tokens": 3}],
    ids=["greedy", "beams", "exact", "tokens taken back"],
)
def test_what_an_input_spills_is_kept_elsewhere_too(model: PeftModel, elsewhere: str, options: dict[str, Any]) -> None:
    ids = random_ids(32, seed=5)[None]
    expected = scores(model, ids, 18, **options)  # two chunks more
    assert torch.equal(scores(model, ids, 18, storage=elsewhere, **options), expected)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma3", "deepseek_v3"])
@pytest.mark.parametrize("storage", STORAGES)
def test_every_kind_of_model_can_keep_its_chunks_elsewhere(family: str, storage: str) -> None:
    model = make_focus_model(family)
    found, expected = answers(model, storage, new_tokens=4), answers(model, "device", new_tokens=4)
    if storage == "int8":
        assert not torch.equal(found, expected)
        assert_close(found[0], expected[0])
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_type_of_states_can_be_kept_elsewhere(elsewhere: str, dtype: torch.dtype) -> None:
    model = make_focus_model(dtype=dtype)
    assert torch.equal(answers(model, elsewhere), answers(model, "device"))


@pytest.mark.parametrize(
    ("in_parts", "order"),
    [(False, [(0, 0), (1, 0), (0, 3), (1, 3)]), (True, [(0, 0), (0, 3), (1, 0), (1, 3)])],  # 2 layers, 6 chunks
    ids=["two passes", "one pass"],
)
def test_a_piece_is_copied_once_in_a_pass_and_ahead_of_its_use(
    model: PeftModel, in_parts: bool, order: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.base_model.reader, "reads_in_parts", in_parts)
    memory = model.encode(DOCUMENTS[0], storage="cpu")
    copied: list[tuple[int, int]] = []
    used: list[tuple[int, int]] = []
    copy, opened = HostStore._copied, HostStore.open

    def counted(self: HostStore, index: int, rows: slice) -> Any:
        copied.append((index, rows.start))
        return copy(self, index, rows)

    def noted(self: HostStore, index: int, rows: slice, *args: Any) -> Any:
        used.append((index, rows.start))
        states = opened(self, index, rows, *args)
        assert len(used) == 4 or len(copied) == len(used) + 1
        return states

    monkeypatch.setattr(HostStore, "_is_here", lambda *_: False)
    monkeypatch.setattr(HostStore, "_copied", counted)
    monkeypatch.setattr(HostStore, "open", noted)
    model.generate(QUESTIONS[:1], memory=memory, max_new_tokens=1, chunk_batch_size=3)
    assert copied == used == order


def test_several_questions_one_after_another_leave_no_trace(model: PeftModel, elsewhere: str) -> None:
    memory, plain = (model.encode(DOCUMENTS[0], storage=storage) for storage in (elsewhere, "device"))
    first = scores(model, QUESTIONS[:1], memory=memory)
    for question in (QUESTIONS[1:], random_ids(30, seed=6)[None], random_ids(1, seed=7)[None]):
        assert torch.equal(scores(model, question, memory=memory), scores(model, question, memory=plain))
    assert torch.equal(scores(model, QUESTIONS[:1], memory=memory), first)
    logits = [model(QUESTIONS[:1], memory=m).logits for m in (memory, plain)]
    assert torch.equal(*logits)


def test_a_conversation_goes_on_from_its_cache(model: PeftModel, elsewhere: str) -> None:
    ids, more = random_ids(20, seed=8), random_ids(15, seed=9)
    results = []
    for storage in (elsewhere, "device"):
        output = model.generate(
            ids[None], max_new_tokens=6, do_sample=False, return_dict_in_generate=True, storage=storage
        )
        ids_so_far = torch.cat([output.sequences[0], more])[None]
        results.append(scores(model, ids_so_far, **{CACHE: output[CACHE]}, chunk_batch_size=None))
    assert torch.equal(*results)


# 8 bits


def reference_of_8_bits(vector: torch.Tensor) -> torch.Tensor:
    """A vector after the way to 8 bits and back: its largest value becomes 127, the scale has 16 bits, rounded up."""
    values = vector.tolist()
    computed = torch.float64 if vector.dtype == torch.float64 else torch.float32
    fraction, exponent = math.frexp(torch.tensor(max(map(abs, values)) / 127, dtype=computed).item())
    scale = math.ldexp(math.ceil(fraction * 2**16), exponent - 16)
    return torch.tensor([round(value / scale) * scale for value in values], dtype=vector.dtype)


def rounded(memory: Memory) -> Memory:
    """A memory on the device whose chunks have been to 8 bits and back."""
    for layer in memory.store.layers:
        for side in layer:
            for number, row in enumerate(memory.rows):
                for head in range(side.shape[1]):
                    for token in range(row.length):
                        side[number, head, token] = reference_of_8_bits(side[number, head, token])
    return memory


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The logits of the first token differ by 5 % of their spread at most."""
    difference = (found - expected).square().mean().sqrt() / expected.std()
    assert 0 < difference < 0.05, f"{difference:.3f}"


@pytest.fixture(scope="module")
def rounded_memory() -> Memory:
    return rounded(shared_model().encode(DOCUMENTS, chunk_batch_size=3))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_8_bits_equal_chunks_that_were_rounded_by_a_slow_reference(
    model: PeftModel, rounded_memory: Memory, options: dict[str, Any]
) -> None:
    expected = scores(model, QUESTIONS, memory=rounded_memory, **options)
    torch.testing.assert_close(answers(model, "int8", **options), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_8_bits_of_every_type_equal_the_reference(dtype: torch.dtype) -> None:
    model = make_focus_model(dtype=dtype)
    expected = scores(model, QUESTIONS, memory=rounded(model.encode(DOCUMENTS, chunk_batch_size=3)))
    assert torch.equal(answers(model, "int8"), expected)


def test_8_bits_change_the_logits_a_little(model: PeftModel) -> None:
    assert_close(answers(model, "int8", new_tokens=1), answers(model, "device", new_tokens=1))


def test_what_an_input_spills_is_rounded_like_a_memory(model: PeftModel) -> None:
    ids = random_ids(40, seed=5)
    spilled = scores(model, ids[None], 4, storage="int8")
    encoded = scores(model, ids[None, -8:], 4, memory=model.encode(ids[:-8], storage="int8"))
    torch.testing.assert_close(spilled, encoded, rtol=0, atol=1e-9)
    assert not torch.equal(spilled, scores(model, ids[None], 4))


def test_8_bits_take_a_fraction_of_the_bytes() -> None:
    model = make_focus_model(dtype=torch.float32, base={"head_dim": 32})
    sizes = {storage: model.encode(DOCUMENTS, storage=storage).nbytes for storage in ("device", "int8")}
    rows, heads, layers = 8, 2, 2
    assert sizes["int8"] == rows * heads * layers * 2 * 8 * (32 + 4)  # 8 tokens of 32 dimensions and a scale
    assert sizes["int8"] < sizes["device"] / 3


# Made, extended, saved, loaded


@pytest.mark.parametrize("storage", STORAGES)
def test_a_memory_is_extended_in_its_own_storage_or_another(model: PeftModel, storage: str) -> None:
    old = model.encode(DOCUMENTS[0][:19], storage=storage)
    before = scores(model, QUESTIONS[:1], memory=old)
    new = model.encode(DOCUMENTS[0][19:], memory=old)
    back = model.encode(DOCUMENTS[0][19:], memory=old, storage="device")
    assert (new.storage, back.storage) == (storage, "device")
    expected = scores(model, QUESTIONS[:1], memory=model.encode(DOCUMENTS[0], storage=storage))
    torch.testing.assert_close(scores(model, QUESTIONS[:1], memory=new), expected, rtol=0, atol=1e-9)
    assert torch.equal(scores(model, QUESTIONS[:1], memory=old), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("storage", ["device", *STORAGES])
def test_a_saved_memory_can_be_loaded_into_every_storage(storage: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_focus_model(dtype=dtype)
    memory = model.encode(DOCUMENTS, storage=storage)
    memory.save(tmp_path / "memory")
    expected = scores(model, QUESTIONS, memory=memory)
    assert {t.dtype for t in load_file(tmp_path / "memory" / "memory.safetensors").values()} == {dtype}
    for other in ("device", *STORAGES):
        loaded = model.load_memory(tmp_path / "memory", storage=other)
        assert loaded.storage == other
        found = scores(model, QUESTIONS, memory=loaded)
        assert torch.equal(found, expected) == (other != "int8" or storage == "int8"), other
        loaded.save(tmp_path / other)
        if other != "int8" or storage == "int8":
            for name in ("memory.json", "memory.safetensors"):
                assert (tmp_path / other / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()


def test_a_configured_storage_is_used_and_can_be_overridden(tmp_path: Path) -> None:
    model = make_focus_model(storage="disk", storage_dir=str(tmp_path))
    memory = model.encode(DOCUMENTS[0])
    assert (memory.storage, memory.storage_dir) == ("disk", str(tmp_path))
    assert "disk" in repr(memory)
    assert model.encode(DOCUMENTS[0], storage="cpu").storage == "cpu"
    memory.save(tmp_path / "memory")
    assert model.load_memory(tmp_path / "memory").storage == "disk"
    assert model.load_memory(tmp_path / "memory", storage="int8").storage == "int8"


@pytest.mark.parametrize("storage", ["cpu", "disk"])
def test_a_memory_in_the_hosts_memory_need_not_move(model: PeftModel, storage: str) -> None:
    memory = model.encode(DOCUMENTS, storage=storage)
    expected = scores(model, QUESTIONS, memory=memory)
    assert memory.to("meta") is memory and memory.device == torch.device("cpu")
    assert torch.equal(scores(model, QUESTIONS, memory=memory), expected)


def test_a_memory_of_8_bits_moves_with_the_model(model: PeftModel) -> None:
    memory = model.encode(DOCUMENTS, storage="int8")
    assert memory.to("cpu").device == torch.device("cpu")
    assert memory.to("meta").device == torch.device("meta")
    with refusal("`memory`", "meta", "`memory.to('cpu')`", model=model):
        model.generate(QUESTIONS, memory=memory)


# Files


def open_files(directory: Path) -> int:
    """Files in a directory, with or without a name, that this process has mapped or opened."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    names = [line for line in maps if str(directory) in line]
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists() or link.is_symlink()]
    return len(names) + sum(str(directory) in link for link in links)


linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")


@linux
def test_files_are_where_they_should_be_and_go_with_the_memory(model: PeftModel, tmp_path: Path) -> None:
    memory = model.encode(DOCUMENTS, storage="disk", storage_dir=tmp_path)
    assert open_files(tmp_path) > 0
    assert sum(path.is_file() for path in tmp_path.iterdir()) == 0  # nothing that a killed process would leave
    extended = model.encode([random_ids(9), random_ids(9)], memory=memory, storage="disk", storage_dir=tmp_path)
    scores(model, QUESTIONS, memory=extended, num_beams=4, num_return_sequences=4, new_tokens=40)  # files grow
    del memory, extended
    gc.collect()
    assert open_files(tmp_path) == 0


@linux
def test_files_of_an_input_go_with_its_answer(model: PeftModel, tmp_path: Path) -> None:
    output = model.generate(
        random_ids(40)[None], max_new_tokens=20, return_dict_in_generate=True, storage="disk", storage_dir=tmp_path
    )
    assert open_files(tmp_path) > 0
    del output
    gc.collect()
    assert open_files(tmp_path) == 0


def test_a_disk_without_room_is_a_sentence_and_no_crash(model: PeftModel, tmp_path: Path) -> None:
    with (
        refusal("`storage_dir`", str(tmp_path), "no room", "MiB", error=OSError),
        no_file_larger_than(5000),
    ):
        model.encode(DOCUMENTS, storage="disk", storage_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert model.encode(DOCUMENTS, storage="disk", storage_dir=tmp_path).num_tokens == 58


# Refusals


CALLS: dict[str, Callable[..., Any]] = {
    "encode": lambda model, **fields: model.encode(DOCUMENTS, **fields),
    "generate": lambda model, **fields: model.generate(DOCUMENTS[0][None], **fields),
    "forward": lambda model, **fields: model(DOCUMENTS[0][None], **fields),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_cannot_be_stored_so_is_refused_before_anything_is_read(
    model: PeftModel, call: str, tmp_path: Path
) -> None:
    with refusal("`storage`", "'tape'", "'device', 'cpu', 'int8', 'disk'", model=model):
        CALLS[call](model, storage="tape")
    with refusal("`storage_dir`", str(tmp_path), "'int8'", '`storage="disk"`', model=model):
        CALLS[call](model, storage="int8", storage_dir=tmp_path)
    with refusal("`storage_dir`", str(tmp_path), "'device'", model=model):
        CALLS[call](model, storage_dir=tmp_path)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "missing", tmp_path / "file"):
        with refusal("`storage_dir`", str(place), "no directory", model=model):
            CALLS[call](model, storage="disk", storage_dir=place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_storage_for_one_call_replaces_the_configured_directory() -> None:
    config = FocusConfig(storage="disk", storage_dir="/somewhere")
    assert config.with_overrides(storage="cpu").storage_dir is None
    assert config.with_overrides(storage="disk").storage_dir == "/somewhere"


# Memory of the process


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":") for line in file)
    return int(status["VmHWM"].split()[0]) / 1024


def measure_memory(folder: Path) -> None:
    """Print how large a long memory is, and how much this process grew with it on the disk and on the device."""
    torch.set_num_threads(1)
    # freed memory goes back to the system at once (-3: M_MMAP_THRESHOLD), else the peak varies by 100 MiB
    assert ctypes.CDLL(None).mallopt(-3, 2**20) == 1
    # small weights, and 32 KB of states for each token
    base = {"num_hidden_layers": 4, "head_dim": 512, "hidden_size": 16, "max_position_embeddings": 4096}
    sizes = {"chunk_size": 128, "local_size": 16, "prompt_size": 8, "chunk_batch_size": 8}
    model = make_focus_model(dtype=torch.float32, base=base, **sizes)

    def run(storage: str, tokens: int) -> float:
        ids, question = random_ids(tokens), random_ids(10)[None]
        directory = folder / f"{storage}{tokens}"
        memory = model.encode(ids, storage=storage)
        model.generate(question, memory=memory, max_new_tokens=3)
        memory.save(directory)
        del memory
        memory = model.load_memory(directory, storage=storage)
        model.generate(question, memory=memory, max_new_tokens=3)
        model.generate(ids[None], storage=storage, max_new_tokens=2)
        return memory.nbytes / 2**20

    run("disk", 1024)
    before = peak()
    size = run("disk", 4096)
    disk = peak() - before
    run("device", 4096)
    print(json.dumps({"size": size, "disk": disk, "device": peak() - before}))


@linux
def test_on_the_disk_a_memory_takes_no_memory(tmp_path: Path) -> None:
    ((code, printed),) = run_apart(measure_memory, [(tmp_path,)], tmp_path)
    assert code == 0, printed
    megabytes = json.loads(printed.splitlines()[-1])
    # encoded, asked, saved, loaded and handed over as a long input
    assert megabytes["size"] > 128
    assert megabytes["device"] > megabytes["size"]
    assert megabytes["disk"] < megabytes["size"] / 4, megabytes
