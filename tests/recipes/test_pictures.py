"""The pictures of the README: accuracy against length, and the recording of the demo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch


pytest.importorskip("matplotlib")

import matplotlib
import plot
from conftest import make_focus_model, make_tiny_tokenizer
from demos.record import animation, record


def words(file: Path) -> list[str]:
    return re.findall(r">([^<>]+)</text>", file.read_text())


def test_accuracy_is_drawn_with_the_samples_of_each_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # words stay words
    scores = {("adapter", 4096): [1.0] * 7, ("adapter", 8192): [1.0, 0.0, 1.0], ("bm25", 4096): [1.0] * 11}
    samples = [
        {"task": "passkey", "method": method, "length": length, "score": score, "metric": "accuracy"}
        for (method, length), found in scores.items()
        for score in found
    ]
    folders = [tmp_path / method for method in ("adapter", "bm25")]
    for folder in folders:
        folder.mkdir()
        own = [json.dumps(sample) + "\n" for sample in samples if sample["method"] == folder.name]
        (folder / "samples.jsonl").write_text("".join(own))
    output = tmp_path / "accuracy.svg"
    given = ["--results", *map(str, folders)]
    plot.main(["accuracy", *given, "--methods", "bm25,adapter", "--output", str(output)])
    text = words(output)
    assert {"7", "3", "11", "4K", "8K", "adapter", "BM25"} <= set(text)
    apart = [word for folder in folders for word in ("--results", str(folder))]
    plot.main(["accuracy", *apart, "--titles", "one model", "another", "--output", str(output)])
    text = words(output)
    assert {"one model", "another", "7", "3", "11"} <= set(text)
    assert text.count("4K") == 2 and text.count("8K") == 1  # a panel has the lengths that it has samples of
    with pytest.raises(SystemExit, match="1 titles for 2 panels"):
        plot.main(["accuracy", *apart, "--titles", "one model", "--output", str(output)])


def test_a_method_without_samples_is_refused(tmp_path: Path) -> None:
    sample = {"task": "passkey", "method": "adapter", "length": 4096, "score": 1.0, "metric": "accuracy"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    with pytest.raises(SystemExit, match="bm25"):
        plot.main(["accuracy", "--results", str(tmp_path), "--methods", "bm25", "--output", str(tmp_path / "a.svg")])


def test_a_recording_has_the_shares_of_every_token_of_the_answer() -> None:
    model = make_focus_model(
        "llama", torch.float32, {"vocab_size": 259, "max_position_embeddings": 4096}, chunk_size=1024, local_size=128
    )
    recording = record(model, make_tiny_tokenizer(), tokens=5000, new_tokens=3, seed=0)
    shares = [token["attention"] for token in recording["answer_tokens"]]
    assert len(shares) == 3
    chunks = {len(row) for row in shares}
    assert len(chunks) == 1 and 0 <= recording["chunks_with_the_fact"][0] < chunks.pop()
    assert all(0 < sum(row) < 1 for row in shares)


def test_chunks_of_the_animation_are_as_dark_as_their_shares() -> None:
    answer = [{"token": "4", "attention": [0.1, 0.4]}, {"token": "<2", "attention": [0.3, 0.15]}]
    sizes = {"tokens": 300, "local_size": 32, "chunk_size": 128}
    picture = animation({"answer_tokens": answer, "fact": "a needle & more", "chunks_with_the_fact": [1], **sizes})
    ElementTree.fromstring(picture)  # is whole
    assert "a needle &amp; more" in picture and "&lt;2" in picture
    first = re.search(
        r"@keyframes c0\{0.00%\{fill-opacity:0.00\}.*?28.57%\{fill-opacity:([\d.]+)\}42.86%\{fill-opacity:([\d.]+)\}",
        picture,
    )
    assert first is not None and first.groups() == ("0.25", "1.00")
