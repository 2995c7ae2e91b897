"""Texts of datasets in an evaluation: read by `datasets` from a local folder, as they would be from the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluating import texts as evaluation_texts
from evaluating.texts import read_texts
from refusal import refusal
from small_evaluation import config, run  # which skips without `datasets`


__all__ = ["config"]  # a fixture
# the longer, the later
TEXTS = [f"{number}: " + "It was a dark night; the rain fell in torrents. " * (10 * number) for number in range(1, 31)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset in Parquet files, with a split and a column as CodeParrot's has."""
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows = {"repo_name": ["a/b"] * len(TEXTS), "content": TEXTS}
    import datasets

    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    return tmp_path / "set"


@pytest.fixture
def mirrored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder stands in for CodeParrot's repository, of which there is no copy without a network."""
    monkeypatch.setitem(evaluation_texts.NAMED["codeparrot"], "path", str(folder))


@pytest.mark.usefixtures("mirrored")
def test_a_named_dataset_is_streamed_up_to_the_wanted_number() -> None:
    assert read_texts(["hub:codeparrot"]) == TEXTS[:20]
    assert read_texts([{"path": "hub:codeparrot", "max_documents": 3}]) == TEXTS[:3]
    long = {"path": "hub:codeparrot", "max_documents": 2, "min_characters": len(TEXTS[24])}
    assert read_texts([long]) == TEXTS[24:26]


def test_any_folder_is_a_dataset(folder: Path, tmp_path: Path) -> None:
    entry: dict[str, Any] = {"path": str(folder), "split": "train", "text_column": "content", "streaming": True}
    assert read_texts([entry]) == TEXTS[:20]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "test.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:4]))
    (tmp_path / "a.txt").write_text("a file")
    rows = {"path": str(tmp_path / "rows"), "split": "test"}
    assert read_texts([rows, str(tmp_path / "*.txt")]) == ["a file", *TEXTS[:4]]


@pytest.mark.usefixtures("mirrored")
def test_an_evaluation_runs_on_a_named_dataset(config: Path) -> None:
    texts = "texts=[{path: 'hub:codeparrot', max_documents: 4, min_characters: 700}]"
    tasks = "tasks={perplexity: {samples: 2, labels: 16}, niah_single_2: {samples: 1, lengths: [900]}}"
    done, folder = run(config, texts, tasks, "methods=[adapter]")
    assert done
    results = json.loads((folder / "results.json").read_text())
    assert {result["dataset"] for result in results} == {"hub:codeparrot", "made from seed 0"}
    identity = json.loads((folder / "config.json").read_text())
    assert len(identity["texts_digests"]) == 4 and identity["texts"][0]["min_characters"] == 700
    _, other = run(
        config, texts.replace("4", "5"), tasks, "methods=[adapter]", "--tasks", "perplexity", "--limit", "1"
    )
    assert other != folder


@pytest.mark.parametrize("name", evaluation_texts.NAMED)
def test_without_a_network_one_sentence_says_so(name: str) -> None:
    with refusal("`texts`", f"'hub:{name}'", str(evaluation_texts.NAMED[name]["path"]), error=FileNotFoundError):
        read_texts([f"hub:{name}"])


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("hub:pg20", ("'hub:pg20'", "hub:pg19", "hub:codeparrot")),
        ({"split": "test"}, ("`path`", "'split'")),
        (3, ("`path`", "3")),
        ({"path": "hub:pg19", "color": 1}, ("`color`", "min_characters")),
        ({"path": "hub:pg19", "max_documents": 0}, ("`max_documents`", "0")),
        ({"path": "hub:pg19", "max_documents": "few"}, ("`texts.max_documents`", "'few'")),
        ({"path": "hub:pg19", "min_characters": -1}, ("`min_characters`", "-1")),
        ({"path": "hub:codeparrot", "min_characters": 10**6}, ("`min_characters`", "1000000")),
    ],
)
@pytest.mark.usefixtures("mirrored")
def test_entries_that_cannot_be_are_refused(entry: Any, named: tuple[str, ...]) -> None:
    with refusal("`texts" if "`m" not in named[0] else named[0], *named):
        read_texts([entry])


def test_a_dataset_without_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    with refusal("`texts`", str(tmp_path), "has no text"):
        read_texts([{"path": str(tmp_path)}])


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with refusal("'hub:pg20'"):
        read_texts(["hub:pg19", "hub:pg20"])
