"""Files as users have them: tables, packed files, saved datasets, conversations. Each is read, or refused."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusal import refusal
from test_data import prepared, text, texts


pa = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")


def zstandard(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard,
}


@pytest.mark.parametrize("kind", PACKERS)
def test_packed_files_are_unpacked_and_cut_off_ones_counted(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    pack = PACKERS[kind]
    (folder / f"a.txt.{kind}").write_bytes(pack(text(1).encode()))
    rows = "".join(json.dumps({"text": text(number)}) + "\n" for number in (2, 3))
    (folder / f"b.jsonl.{kind}").write_bytes(pack(rows.encode()))
    (folder / f"c.txt.{kind}").write_bytes(pack(os.urandom(4000).hex().encode())[:-20])
    data = prepared(tmp_path, folder)
    assert texts(data.train) == [text(1), text(2), text(3)]
    assert data.report.sources[0].left_out == {"unreadable files": 1}


@pytest.mark.parametrize(("kind", "comma"), [("csv", ","), ("tsv", "\t")])
def test_a_table_holds_rows(kind: str, comma: str, tmp_path: Path) -> None:
    lines = [f"id{comma}body", f'1{comma}"{text(1)}{comma} and ""more""\nin two lines"', "2", f"3{comma}{text(3)}"]
    (tmp_path / f"a.{kind}").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    data = prepared(tmp_path, {"path": str(tmp_path / f"a.{kind}"), "text_column": "body"})
    assert texts(data.train) == [f'{text(1)}{comma} and "more"\nin two lines', text(3)]
    assert data.report.sources[0].left_out == {"broken lines": 1}
    with pytest.raises(ValueError, match="no column 'text'; its columns are body, id"):
        prepared(tmp_path, tmp_path / f"a.{kind}")


def test_a_split_that_is_named_is_all_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "corpus"
    folder.mkdir()
    splits = ("train", "test", "validation")
    for number, split in enumerate(splits):
        (folder / f"{split}.jsonl").write_text(json.dumps({"text": text(number)}) + "\n")
    for number, split in enumerate(splits):
        assert texts(prepared(tmp_path, {"path": str(folder), "split": split}).train) == [text(number)]
    assert texts(prepared(tmp_path, folder).train) == [text(0), text(1), text(2)], "a folder is all of its files"


def test_a_saved_dataset_is_loaded(tmp_path: Path) -> None:
    rows = [datasets.Dataset.from_dict({"text": [text(number)], "id": [number]}) for number in range(2)]
    rows[0].save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows[0], "test": rows[1]}).save_to_disk(str(tmp_path / "two"))
    assert texts(prepared(tmp_path, tmp_path / "one").train) == [text(0)]
    assert texts(prepared(tmp_path, tmp_path / "two").train) == [text(0)]
    assert texts(prepared(tmp_path, {"path": str(tmp_path / "two"), "split": "test"}).train) == [text(1)]
    with refusal("`split`", "'dev'", "train, test"):
        prepared(tmp_path, {"path": str(tmp_path / "two"), "split": "dev"})
    with refusal("`split`", "'test'", "without splits"):
        prepared(tmp_path, {"path": str(tmp_path / "one"), "split": "test"})


def test_conversations_are_refused_with_what_to_do(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": text(1)}, {"role": "assistant", "content": text(2)}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    with refusal("no column 'text'", "`FocusSFTTrainer`", "`instruction_column`"):
        prepared(tmp_path, tmp_path / "a.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_text_with_a_mark_is_read_in_its_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(f"{text(1)} naïve".encode(encoding))
    data = prepared(tmp_path, tmp_path / "a.txt")
    assert texts(data.train) == [f"{text(1)} naïve"]


def test_a_folder_that_cannot_be_read_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus" / "closed").mkdir(parents=True)
    (tmp_path / "corpus" / "a.txt").write_text(text(1))
    scandir = os.scandir

    def closed(path: Any) -> Any:  # root may read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with refusal("`path`", "closed", "Permission denied", error=PermissionError):
        prepared(tmp_path, tmp_path / "corpus")
