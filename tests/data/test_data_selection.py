"""Which documents are trained on and which are held out, and what a configuration may not say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data import lengths_of, prepared, text, texts, write_lines, write_texts

from focus_peft.data import DataConfig, LengthBand, SourceConfig
from focus_peft.data.selection import select
from focus_peft.data.tokenizing import PIECE


# Bands and held-out documents


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    """Ten documents of each length from 10 to 99 tokens."""
    rows = [{"text": f"{length:03d}{number}{'x' * (length - 4)}"} for length in range(10, 100) for number in range(10)]
    return write_lines(tmp_path / "lengths.jsonl", rows)


def test_bands_hold_exactly_their_counts(tmp_path: Path, lengths: Path) -> None:
    bands = [
        {"minimum": 10, "maximum": 20, "count": 37},
        {"minimum": 20, "maximum": 49, "count": 5},
        {"minimum": 90, "maximum": 99},
    ]
    data = prepared(tmp_path, lengths, bands=bands)
    assert data.report.bands == [37, 5, 100]
    counts = Counter(
        next(n for n, (low, high) in enumerate([(10, 20), (20, 49), (90, 99)]) if low <= length <= high)
        for length in lengths_of(data.train)
    )
    assert counts == {0: 37, 1: 5, 2: 100}
    other = prepared(tmp_path, lengths, bands=bands, seed=1)
    assert texts(other.train) != texts(data.train)
    assert other.report.bands == [37, 5, 100]


def test_bands_count_over_all_sources_and_leave_pairs_alone(tmp_path: Path) -> None:
    first, second = write_texts(tmp_path, 30, 50), write_texts(tmp_path, 30, 60, first=100)
    pairs = write_lines(tmp_path / "pairs.jsonl", [{"q": f"Why {n}?", "a": "Because."} for n in range(4)])
    pair = {"path": str(pairs), "instruction_column": "q", "answer_column": "a"}
    data = prepared(tmp_path, first, second, pair, bands=[LengthBand(50, 60, 20)])
    used = [source.train for source in data.report.sources]
    assert used[0] + used[1] == 20 and min(used) > 2 and used[2] == 4


def test_a_band_that_cannot_be_filled_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = prepared(tmp_path, write_texts(tmp_path, 5, 50), bands=[LengthBand(40, 60, 9)])
    assert len(data.train) == 5
    assert "There are 5 texts of 40 to 60 tokens, fewer than the 9 that `bands` asks for" in caplog.text


def test_bands_that_leave_nothing_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`bands` \(70 to 90 tokens\).*leave nothing to train on"):
        prepared(tmp_path, write_texts(tmp_path, 5, 50), bands=[LengthBand(70, 90)])


def test_held_out_documents_are_never_trained_on(tmp_path: Path) -> None:
    path = write_texts(tmp_path, 20, 100)
    again = write_lines(tmp_path / "again.jsonl", [{"text": text(number)} for number in range(20)])
    data = prepared(tmp_path, path, again, held_out=6, max_tokens=40)  # every text twice, in three pieces
    assert len(data.held_out) == 6 * 3
    assert not set(texts(data.held_out)) & set(texts(data.train))
    assert [source.held_out for source in data.report.sources] == [18, 0]  # evaluated once
    assert len(data.train) == 2 * 14 * 3


def test_held_out_documents_depend_on_text_and_seed_alone(tmp_path: Path) -> None:
    rows = [{"text": text(number)} for number in range(20)]
    forward, backward = write_lines(tmp_path / "f.jsonl", rows), write_lines(tmp_path / "b.jsonl", rows[::-1])
    chosen = texts(prepared(tmp_path, forward, held_out=5).held_out)
    assert texts(prepared(tmp_path, backward, held_out=5).held_out) == chosen
    assert set(chosen) < set(texts(prepared(tmp_path, forward, held_out=9).held_out))
    assert texts(prepared(tmp_path, forward, held_out=5, seed=1).held_out) != chosen


def test_held_out_documents_are_in_a_band_where_there_are_bands(tmp_path: Path, lengths: Path) -> None:
    data = prepared(tmp_path, lengths, held_out=7, bands=[LengthBand(30, 40, 50)])
    assert len(data.held_out) == 7 and len(data.train) == 50
    assert all(30 <= length <= 40 for length in lengths_of(data.held_out))


def test_holding_out_everything_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`held_out` is 5, but there are 5 different documents"):
        prepared(tmp_path, write_texts(tmp_path, 5), held_out=5)


def test_what_is_chosen_stays_the_same() -> None:
    """Of three sources, the second of which has no texts, with texts that occur twice."""
    sources = [np.zeros(count, PIECE) for count in (12, 5, 9)]
    for number, pieces in enumerate(sources):
        place = np.arange(len(pieces))
        pieces["length"], pieces["part"] = 10 + 7 * place % 20, place % 2
        pieces["text"] = 1000 + place // 2 + 2 * number
    bands = [LengthBand(10, 19, 4), LengthBand(15, 27)]
    held_out = [[0, 1, 4, 5], [], [8]]  # the first two of the second source occur in the first
    for given, train, counts in (
        (None, [[2, 3, 6, 7, 8, 9, 10, 11], [2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7]], []),
        (bands, [[2, 6, 7, 8, 10, 11], [2, 3, 4], [2, 4, 5, 7]], [4, 6]),
    ):
        found = select(sources, [True, False, True], given, 3, 8)
        assert [numbers.tolist() for numbers in found.train] == train and found.bands == counts
        assert [numbers.tolist() for numbers in found.held_out] == held_out
        assert {numbers.dtype for numbers in (*found.train, *found.held_out)} == {np.dtype(np.int64)}


# Configuration


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sources": []}, "`sources` must be a list of at least one source"),
        ({"sources": [{"path": "a", "wieght": 1}]}, "`sources` has the unknown entry `wieght`; there are `path`"),
        ({"sources": [{"weight": 1}]}, "which lacks `path`"),
        ({"sources": ["a"]}, "`sources` has 'a', where a mapping"),
        ({"sources": [{"path": ""}]}, "`path` of a source must be"),
        ({"sources": [{"path": "a", "weight": -1}]}, "`weight` of the source 'a' must be a finite number"),
        ({"sources": [{"path": "a", "weight": 0}]}, "`weight` is 0 for every source"),
        ({"sources": [{"path": "a", "streaming": True}]}, "`streaming` of the source 'a' needs `max_documents`"),
        (
            {"sources": [{"path": "a", "max_documents": 0}]},
            "`max_documents` of the source 'a' must be a positive",
        ),
        ({"sources": [{"path": "a", "answer_column": "b"}]}, "give both, or neither"),
        ({"bands": []}, "`bands` is an empty list"),
        ({"bands": [{"minimum": 5, "maximum": 4}]}, r"`maximum` of a length band \(4\) is below its `minimum` \(5\)"),
        ({"bands": [{"minimum": 9000, "maximum": 9999}]}, "`bands` has one of 9000 to 9999 tokens, but"),
        (
            {"bands": [{"minimum": 100, "maximum": 200, "count": 0}]},
            "`count` of a length band must be a positive int",
        ),
        ({"min_tokens": 10, "max_tokens": 9}, r"`min_tokens` \(10\) is above `max_tokens` \(9\)"),
        ({"held_out": -1}, "`held_out` must be an integer, 0 or above, got -1"),
        ({"seed": 1.5}, "`seed` must be an integer"),
        ({"num_proc": 0}, "`num_proc` must be a positive integer"),
    ],
)
def test_a_configuration_that_cannot_work_is_an_error(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        DataConfig.from_dict({"sources": [{"path": "a"}], **fields})


def test_a_configuration_comes_from_a_mapping() -> None:
    config = DataConfig.from_dict({"sources": [{"path": "a"}], "bands": [{"minimum": 64, "maximum": 128}]})
    assert config == DataConfig([SourceConfig("a")], bands=[LengthBand(64, 128)])
