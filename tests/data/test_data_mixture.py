"""In which order and with which seeds documents are trained on: functions of the seed and the epoch alone."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_worker import prepare_together
from fresh import run_apart
from refusal import refusal
from test_data import prepared, text, texts, write_texts
from torch.utils.data import DataLoader

from focus_peft.config import IGNORE
from focus_peft.data import DocumentCollator
from focus_peft.data.mixture import epoch_order, quotas, sample_seed
from focus_peft.losses.sampling import draw_int, generator_of


# Order


def test_shares_follow_the_weights_in_every_stretch() -> None:
    weights = [1.0, 2.0, 5.0]
    sources, _ = epoch_order([400, 100, 300], weights, seed=0, epoch=0)
    assert np.bincount(sources).tolist() == [100, 200, 500]
    for start in range(0, 800, 80):
        counts = np.bincount(sources[start : start + 80], minlength=3)
        assert np.abs(counts - [10, 20, 50]).max() <= 3


def test_quotas_add_up() -> None:
    for total in (1, 7, 100, 1001):
        shares = quotas([0.3, 1.0, 2.2], total)
        assert sum(shares) == total
        assert all(abs(share - weight / 3.5 * total) < 1 for share, weight in zip(shares, [0.3, 1.0, 2.2]))


def test_one_source_is_gone_through_once_an_epoch() -> None:
    orders = [epoch_order([50], [1.0], seed=3, epoch=epoch)[1].tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_a_small_source_repeats_in_a_fresh_order_and_a_large_one_goes_on_where_it_was() -> None:
    small, large = [], []
    for epoch in range(4):
        sources, numbers = epoch_order([10, 90], [1.0, 1.0], seed=0, epoch=epoch)
        small += numbers[sources == 0].tolist()
        large += numbers[sources == 1].tolist()
    assert len(small) == len(large) == 200
    rounds = [small[start : start + 10] for start in range(0, 200, 10)]
    assert all(sorted(order) == list(range(10)) for order in rounds)
    assert len(set(map(tuple, rounds))) == 20
    assert sorted(large[:90]) == sorted(large[90:180]) == list(range(90))
    assert large[:90] != large[90:180]


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    sources = [write_texts(tmp_path, 9), {"path": str(write_texts(tmp_path, 5, first=100)), "weight": 2.0}]

    def order(epoch: int, seed: int = 0) -> list[Any]:
        data = prepared(tmp_path, *sources, seed=seed).train
        data.set_epoch(epoch)
        return [data[number] for number in range(len(data))]

    assert order(3) == order(3)
    assert order(3) != order(4) and order(3) != order(3, seed=1)
    data = prepared(tmp_path, *sources).train
    for epoch in (5, 1, 3):  # wherever it comes from
        data.set_epoch(epoch)
    assert [data[number] for number in range(len(data))] == order(3)
    assert len(order(0)) == 14


def test_indices_are_those_of_a_sequence(tmp_path: Path) -> None:
    data = prepared(tmp_path, write_texts(tmp_path, 9), held_out=2)
    for dataset in (data.train, data.held_out):
        assert dataset[-1] == dataset[len(dataset) - 1]
        assert dataset[np.int64(1)] == dataset[1]
        for index in (len(dataset), -len(dataset) - 1):
            with pytest.raises(IndexError, match="`index`"):
                dataset[index]
        assert len(list(dataset)) == len(dataset)
    for epoch in (-1, 0.5):
        with pytest.raises(ValueError, match="`epoch` must be an integer, 0 or above"):
            data.train.set_epoch(epoch)


def test_a_source_of_weight_zero_is_not_trained_on(tmp_path: Path) -> None:
    unused = {"path": str(write_texts(tmp_path, 9)), "weight": 0}
    data = prepared(tmp_path, unused, write_texts(tmp_path, 5, first=100))
    assert texts(data.train) == sorted(text(100 + number) for number in range(5))


# Seeds of samples


def test_every_sample_of_every_epoch_has_a_seed_of_its_own(tmp_path: Path) -> None:
    data = prepared(tmp_path, write_texts(tmp_path, 30), held_out=5)
    seeds = set()
    for epoch in range(3):
        data.train.set_epoch(epoch)
        seeds.update(data.train[index]["sample_seed"] for index in range(25))
        assert data.train[7]["sample_seed"] == sample_seed(0, epoch, 7)
    held_out = {data.held_out[index]["sample_seed"] for index in range(5)}
    assert len(seeds | held_out) == 80
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert not hasattr(data.held_out, "set_epoch")  # every evaluation draws the same spans


def test_a_seed_decides_what_its_generator_draws() -> None:
    seeds = [sample_seed(0, 0, index) for index in range(200)]
    drawn = [draw_int(0, 9, generator_of(seed)) for seed in seeds]
    assert drawn == [draw_int(0, 9, generator_of(seed)) for seed in seeds]
    assert min(Counter(drawn).values()) > 5 and len(Counter(drawn)) == 10


# Batches


def test_the_collator_pads_on_the_right() -> None:
    items = [
        {"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7], "sample_seed": 2**62 + 1},
        {"input_ids": [8], "labels": [8], "sample_seed": 0},
    ]
    batch = DocumentCollator(pad_token_id=3)(items)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7], [8, IGNORE, IGNORE]]
    assert batch["sample_seeds"].tolist() == [2**62 + 1, 0]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_the_collator_leaves_out_what_a_row_masks() -> None:
    items = [
        {"input_ids": [0, 0, 5, 6, 7], "attention_mask": [0, 0, 1, 1, 1]},
        {"input_ids": [8, 0, 0], "labels": [9, 0, 0], "attention_mask": [1, 0, 0]},
    ]
    batch = DocumentCollator(pad_token_id=3)(items)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [9, IGNORE, IGNORE]]
    with refusal("`attention_mask`", "`input_ids`"):
        DocumentCollator()([{"input_ids": [5, 6, 7], "attention_mask": [1, 1]}])


@pytest.mark.parametrize("name", ["input_ids", "labels"])
def test_the_collator_refuses_fractions(name: str) -> None:
    with refusal(f"`{name}`", "integer", "float"):
        DocumentCollator()([{"input_ids": [5, 6], "labels": [5, 6], name: [5.5, 6.5]}])


def batches(data: Any, workers: int, epochs: int) -> list[list[int]]:
    loader: Any = DataLoader(
        data, batch_size=4, collate_fn=DocumentCollator(), num_workers=workers, persistent_workers=workers > 0
    )
    found = []
    for epoch in range(epochs):
        data.set_epoch(epoch)
        found += [batch["sample_seeds"].tolist() for batch in loader]
    return found


def test_workers_that_outlive_an_epoch_learn_of_the_next(tmp_path: Path) -> None:
    data = prepared(tmp_path, write_texts(tmp_path, 10)).train
    assert batches(data, workers=1, epochs=3) == batches(data, workers=0, epochs=3)


def test_a_process_that_gets_a_dataset_is_not_sent_its_tokens(tmp_path: Path) -> None:
    data = prepared(tmp_path, write_texts(tmp_path, 10, 5000))
    data.train[0]
    sent = pickle.dumps(data.held_out.parts)
    assert len(sent) < 5000
    assert pickle.loads(sent)[0].table.ids(0) == data.train.parts[0].table.ids(0)


# Several processes


@pytest.mark.slow
def test_of_two_processes_one_tokenizes_and_both_see_the_same(tmp_path: Path) -> None:
    path = write_texts(tmp_path, 10)
    for code, printed in run_apart(prepare_together, [(rank, 2, tmp_path, path) for rank in range(2)], tmp_path):
        assert code == 0, printed
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second and len(first.split()) > 10
    assert len(list((tmp_path / "cache").iterdir())) == 1
