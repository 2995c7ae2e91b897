"""From files and datasets to samples: what is read, what is left out, and what is said about it."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tiny_tokenizer
from data_worker import say_what_focus_peft_imported
from fresh import run_apart
from transformers import PreTrainedTokenizerFast

from focus_peft.data import DataConfig, PreparedData, prepare


pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
TOKENIZER = make_tiny_tokenizer()


def text(number: int, length: int = 100) -> str:
    """A document of so many bytes, which the byte tokenizer makes so many tokens of; no two are alike."""
    return (f"Document {number} speaks. " * (length // 10 + 1))[:length]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_texts(folder: Path, count: int, length: int = 100, first: int = 0) -> Path:
    """So many documents in a `.jsonl` file."""
    return write_lines(folder / f"{first}.jsonl", [{"text": text(first + n, length)} for n in range(count)])


def prepared(
    tmp_path: Path, *sources: Any, tokenizer: PreTrainedTokenizerFast = TOKENIZER, **fields: Any
) -> PreparedData:
    """`prepare` with a cache in `tmp_path`. A source is a path, or a dictionary of fields."""
    entries = [{"path": str(source)} if isinstance(source, (str, Path)) else source for source in sources]
    config = DataConfig(sources=entries, cache_dir=str(tmp_path / "cache"), **{"min_tokens": 8, **fields})
    return prepare(config, tokenizer)


def texts(dataset: Any) -> list[str]:
    """What the samples say, sorted."""
    return sorted(TOKENIZER.decode(dataset[n]["input_ids"]) for n in range(len(dataset)))


def lengths_of(dataset: Any) -> list[int]:
    """Tokens of each sample."""
    return [len(dataset[n]["input_ids"]) for n in range(len(dataset))]


def left_out(data: PreparedData) -> dict[str, int]:
    return data.report.sources[0].left_out


# Files


def test_rows_and_texts_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    write_lines(folder / "a.jsonl", [{"text": text(1)}, {"text": text(2)}])
    with gzip.open(folder / "b.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"text": text(3)}) + "\n")
    (folder / "c.json").write_text(json.dumps([{"text": text(4)}, {"text": text(5)}]))
    (folder / "lines.json").write_text(f"{json.dumps({'text': text(6)})}\n{json.dumps({'text': text(7)})}\n")
    pq.write_table(pa.table({"text": [text(8), text(9)], "other": [1, 2]}), folder / "d.parquet")
    (folder / "deep" / "e.txt").write_text(text(10))
    (folder / "deep" / "f.md").write_text(text(11))
    (folder / "g.py").write_bytes(b"\xef\xbb\xbf" + text(12).encode())  # with a byte order mark
    (folder / "h.txt").write_bytes(text(13).encode("utf-16"))
    with gzip.open(folder / "i.rst.gz", "wt") as stream:
        stream.write(text(14))
    data = prepared(tmp_path, folder)
    assert texts(data.train) == sorted(text(number) for number in range(1, 15))
    assert left_out(data) == {}
    report = data.report.sources[0]
    assert (report.documents, report.pieces, report.tokens, report.train, report.held_out) == (14, 14, 1400, 14, 0)


def test_a_source_tree_is_read_without_what_is_no_source(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("", ".git", "pkg", "pkg/__pycache__"):
        (tree / folder).mkdir(exist_ok=True)
        (tree / folder / "module.py").write_text(text(len(folder)))
    (tree / "logo.png").write_bytes(b"\x89PNG\0\0" + bytes(200))
    (tree / ".hidden").write_text(text(50))
    (tree / "settings.json").write_text('{"indent": 4}')
    data = prepared(tmp_path, tree)
    assert texts(data.train) == [text(0), text(3)]
    assert left_out(data) == {"binary files": 1, "rows without text": 1}


def test_globs_take_the_files_that_they_match(tmp_path: Path) -> None:
    for name in ("a/one.txt", "a/two.md", "b/three.txt", "b/c/four.txt"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(len(name)))
    assert texts(prepared(tmp_path, tmp_path / "docs" / "*" / "*.txt").train) == sorted(map(text, (9, 11)))
    assert texts(prepared(tmp_path, tmp_path / "docs" / "**" / "*.txt").train) == sorted(map(text, (9, 11, 12)))
    assert texts(prepared(tmp_path, tmp_path / "docs" / "?").train) == sorted(map(text, (8, 9, 11, 12)))


def test_max_documents_takes_the_first(tmp_path: Path) -> None:
    data = prepared(tmp_path, {"path": str(write_texts(tmp_path, 9)), "max_documents": 4})
    assert texts(data.train) == [text(number) for number in range(4)]


def test_another_column_may_hold_the_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"content": text(1), "text": text(2)}])
    assert texts(prepared(tmp_path, {"path": str(path), "text_column": "content"}).train) == [text(1)]


# What cannot be used is counted


def test_what_cannot_be_used_is_counted_and_told_in_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    good = [json.dumps({"text": text(number)}).encode() for number in range(3)]
    bad = [
        b'{"text": "cut o',
        b"[1, 2]",
        b'"a string"',
        b'{"text": "caf\xe9"}',  # Latin-1
        b'{"text": "half a pair: \\ud83d"}',
        b'{"text": ""}',
        b'{"text": " \\n "}',
        b'{"text": null}',
        b'{"text": 7}',
        b'{"title": "no text"}',
        b'{"text": "short"}',
        b"",  # a blank line is none of these
    ]
    (folder / "a.jsonl").write_bytes(b"\n".join([*good, *bad]) + b"\n")
    (folder / "latin.txt").write_bytes(b"\xe9" * 50)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "broken.parquet").write_bytes(b"PAR1 is all that is right here")
    (folder / "broken.txt.gz").write_bytes(gzip.compress(text(9).encode())[:-20])
    with caplog.at_level(logging.WARNING, logger="focus_peft"):
        data = prepared(tmp_path, folder)
    assert texts(data.train) == [text(number) for number in range(3)]
    assert left_out(data) == {
        "broken lines": 3,
        "texts that are not UTF-8": 3,
        "empty documents": 3,
        "rows without text": 3,
        "documents that are too short": 1,
        "unreadable files": 2,
    }
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        f"Left out of the source {str(folder)!r}, which has 4 documents: 3 broken lines, 1 documents that are too "
        "short, 3 empty documents, 3 rows without text, 3 texts that are not UTF-8, 2 unreadable files."
    )


def test_the_same_is_told_when_the_tokens_come_from_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": text(1)}, {"text": ""}])
    reports = [prepared(tmp_path, path).report for _ in range(2)]
    assert reports[0] == reports[1]
    assert [record.getMessage() for record in caplog.records].count(caplog.records[0].getMessage()) == 2


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        (b"", {}, "it is empty"),
        (b"\n\n", {}, "check its `path` and `split`"),
        (b"not\njson\n", {}, "2 broken lines. To use it, write one JSON object a line"),
        (b'{"text": ""}\n', {}, "1 empty documents. To use it, name a column"),
        (b'{"text": null}\n', {}, "1 rows without text"),
        (b'{"text": "\xe9"}\n', {}, "convert the files to UTF-8"),
        (b'{"text": "a little"}\n', {"min_tokens": 50}, r"make `min_tokens` \(50\) smaller"),
    ],
)
def test_a_source_of_which_nothing_is_left_is_an_error(
    tmp_path: Path, content: bytes, fields: dict[str, Any], expected: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    for _ in range(2):  # what came to nothing is not taken for a cache
        with pytest.raises(ValueError, match=f"Nothing is left of the source .*{expected}"):
            prepared(tmp_path, tmp_path / "a.jsonl", **fields)


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.txt", " ", "1 empty documents. To use it, name a column that holds the text, or files that have some."),
        ("a.csv", "text,id\na\n", "1 broken lines. .*, or a table whose rows have all fields."),
    ],
)
def test_a_remedy_suits_every_kind_of_file(tmp_path: Path, name: str, content: str, remedy: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=remedy):
        prepared(tmp_path, tmp_path / name)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_a_column_that_is_nowhere_is_an_error_that_names_the_columns_there_are(tmp_path: Path, kind: str) -> None:
    rows = [{"content": text(1), "id": 1}, {"content": text(2), "id": 2}]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write_lines(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are content, id.*`text_column`"):
        prepared(tmp_path, path)
    pair = {"path": str(path), "instruction_column": "content", "answer_column": "output"}
    with pytest.raises(ValueError, match="no column 'output'; its columns are content, id.*`answer_column`"):
        prepared(tmp_path, pair)


def test_a_readme_beside_the_rows_does_not_hide_that_their_column_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "README.md").write_text(text(1))
    write_lines(folder / "a.jsonl", [{"content": text(2)}])
    with pytest.raises(ValueError, match="no column 'text'"):
        prepared(tmp_path, folder)


@pytest.mark.parametrize("path", ["nowhere/at/all.jsonl", "/nowhere/at/all", "nowhere/*.txt", "no such dataset"])
def test_a_path_that_is_not_there_is_an_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match="`path` of a source is"):
        prepared(tmp_path, path)


def test_a_dataset_that_cannot_be_reached_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nobody/has-this.*the Hub"):
        prepared(tmp_path, "nobody/has-this")


# Datasets


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset as the Hub has it: Parquet files of two splits."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "hub" / "corpus"
    folder.mkdir(parents=True)
    rows = {"train": range(6), "validation": range(6, 8)}
    for split, numbers in rows.items():
        table = pa.table({"text": [text(number) for number in numbers], "number": list(numbers)})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_datasets_reads_a_dataset_by_name_and_split(tmp_path: Path, dataset_folder: Path) -> None:
    train = prepared(tmp_path, {"path": str(dataset_folder), "name": "default"})
    assert texts(train.train) == [text(number) for number in range(6)]
    validation = prepared(tmp_path, {"path": str(dataset_folder), "split": "validation"})
    assert texts(validation.train) == [text(6), text(7)]
    with pytest.raises(ValueError, match="no column 'body'; its columns are number, text"):
        prepared(tmp_path, {"path": str(dataset_folder), "name": "default", "text_column": "body"})


def test_no_progress_bar_is_shown_where_there_is_no_terminal(
    tmp_path: Path, dataset_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path, {"path": str(dataset_folder), "name": "default"}, write_texts(tmp_path, 3, first=50))
    assert capfd.readouterr().err == ""


def test_a_streamed_dataset_is_kept_up_to_max_documents(tmp_path: Path, dataset_folder: Path) -> None:
    data = prepared(tmp_path, {"path": str(dataset_folder), "streaming": True, "max_documents": 3})
    assert texts(data.train) == [text(number) for number in range(3)]


def test_files_take_no_options_of_datasets(tmp_path: Path) -> None:
    path = str(write_texts(tmp_path, 2))
    for option in ({"split": "test"}, {"name": "default"}, {"streaming": True, "max_documents": 1}):
        with pytest.raises(ValueError, match="`path` of a source is .*, which names files, but `name`"):
            prepared(tmp_path, {"path": path, **option})


@pytest.mark.slow
def test_importing_focus_peft_imports_no_datasets(tmp_path: Path) -> None:
    ((code, printed),) = run_apart(say_what_focus_peft_imported, [()], tmp_path)
    assert (code, printed.strip()) == (0, "[]")
