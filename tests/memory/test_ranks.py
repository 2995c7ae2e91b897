"""Chunks that are spread over processes give what one process gives, and each process holds its share of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks_worker
import torch
from conftest import make_focus_model
from ranks_worker import DOCUMENTS, LONG, QUESTIONS, SAVED, SCENARIOS, Scenarios
from refusal import refusal
from runs import start

from focus_peft.memory.ranks import Ranks
from focus_peft.passes.inputs import ChunkRow


# With three processes, where fewer chunks than processes and uneven shares are most likely to matter
SOME = [
    "an_input_and_what_it_spills",
    "beams",
    "one_chunk_and_what_it_spills",
    "no_chunk_at_first",
    "a_memory",
    "a_memory_of_one_chunk",
    "a_memory_that_is_extended",
    "a_memory_that_is_loaded",
    "keys_and_values_of_different_widths",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, ranks_worker.Results], Path]:
    """What one process gives for all scenarios, and the folder with the memory that it saved."""
    directory = tmp_path_factory.mktemp("alone")
    scenarios = Scenarios(False, directory)
    scenarios.model.encode(DOCUMENTS).save(directory / SAVED)
    return scenarios.run(SCENARIOS), directory


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "names"), [(2, [*SCENARIOS]), (3, SOME)], ids=["2", "3"])
def test_several_processes_equal_one(
    processes: int, names: list[str], alone: tuple[dict[str, ranks_worker.Results], Path]
) -> None:
    expected, directory = alone
    done = start(Path(ranks_worker.__file__), str(directory), *names, processes=processes, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    results = [torch.load(directory / f"{rank}.pt") for rank in range(processes)]
    wrong = {}
    for name in names:
        for rank, result in enumerate(results):
            try:
                assert_same(result["scenarios"][name], expected[name])
                assert_same(result["scenarios"][name], results[0]["scenarios"][name], tolerance=0)
            except AssertionError as error:
                wrong[f"{name}, rank {rank}"] = error
    assert not wrong
    held = [result["chunks held"] for result in results]  # spread, of all, and not spread
    assert held == [[8 // processes + (rank < 8 % processes), 8, 8] for rank in range(processes)]
    for rank, result in enumerate(results):
        errors = result["errors"]
        for name in ("other beginnings", "other ends", "other seeds", "other options", "other lengths"):
            assert errors[name].startswith("RuntimeError: ") and "what is read is not the same" in errors[name], name
        assert errors["other documents"].startswith("RuntimeError: ")
        assert "the documents are not the same" in errors["other documents"]
        assert errors["saved"].startswith(f"ValueError: The memory is spread over {processes} processes")
        assert errors["joined"].startswith("ValueError: `spread_chunks` is False, but the chunks of `memory` are")
        assert f"this was rank {rank} of them, but now it is a process on its own" in errors["alone"]
    assert not (directory / "spread.memory").exists()


def assert_same(found: ranks_worker.Results, expected: ranks_worker.Results, tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        exact = value.dtype in (torch.long, torch.bfloat16)
        torch.testing.assert_close(found[name], value, rtol=0, atol=0 if exact else tolerance)


# Who holds what


def rows_of(*lengths: int) -> list[ChunkRow]:
    return [ChunkRow(0, index, length) for index, length in enumerate(lengths)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 4, 7, 30])
def test_every_process_takes_a_run_of_new_chunks_as_long_as_the_others(size: int, count: int) -> None:
    rows = rows_of(*[8] * count)
    Ranks(0, size).share(rows)
    owners = [row.rank for row in rows]
    assert owners == sorted(owners)
    shares = [owners.count(rank) for rank in range(size)]
    assert max(shares) - min(shares) <= 1


def test_chunks_that_come_one_by_one_are_spread_evenly_too() -> None:
    rows: list[ChunkRow] = []
    for length in (8, 8, 3, 8, 8, 8):
        new = rows_of(length)
        Ranks(0, 2).share(new, rows)
        rows += new
    assert [row.rank for row in rows] == [0, 1, 0, 1, 0, 1]


def test_rows_of_a_process_stand_in_order() -> None:
    rows = rows_of(*[8] * 7)
    for row, rank in zip(rows, (0, 0, 1, 1, 0, 1, 1)):
        row.rank = rank
    assert Ranks(1, 2).own(rows) == [rows[2], rows[3], rows[5], rows[6]]


# Refusals


def test_without_torch_distributed_nothing_is_spread(tmp_path: Path) -> None:
    model = make_focus_model()
    said = "`spread_chunks`", "torch.distributed", "torchrun"
    for ids in (QUESTIONS[:1], LONG):
        with refusal(*said, model=model):
            model.generate(ids, max_new_tokens=2, spread_chunks=True)
    with refusal(*said, model=model):
        model.encode(DOCUMENTS, spread_chunks=True)
    with refusal(*said, model=model):
        model(LONG, spread_chunks=True)
    with refusal(*said, model=model):
        model.chunk_attention(LONG, spread_chunks=True)
    model.encode(DOCUMENTS).save(tmp_path / "memory")
    with refusal(*said, model=model):
        model.load_memory(tmp_path / "memory", spread_chunks=True)
    configured = make_focus_model(spread_chunks=True)
    with refusal(*said, model=configured):
        configured.generate(LONG, max_new_tokens=2)
    output = configured.generate(LONG, max_new_tokens=2, do_sample=False, spread_chunks=False)
    assert torch.equal(output, model.generate(LONG, max_new_tokens=2, do_sample=False))


@pytest.mark.usefixtures("distributed")
def test_divided_weights_and_spread_chunks_exclude_each_other() -> None:
    model = make_focus_model()
    weight: Any = next(model.parameters())
    weight.ds_id = 0  # as ZeRO-3 marks them
    with refusal("`spread_chunks`", "weight", model=model):
        model.generate(LONG, max_new_tokens=2, spread_chunks=True)
