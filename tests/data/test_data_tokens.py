"""Tokens: what a document becomes, which of it are labels, and that it is tokenized once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BOS, EOS, make_tiny_tokenizer
from data_worker import be_killed_while_writing, read_without_datasets
from fresh import run_apart
from refusal import no_file_larger_than, refusal
from test_data import TOKENIZER, lengths_of, prepared, text, texts, write_lines, write_texts
from tokenizers import processors

from focus_peft.config import IGNORE
from focus_peft.data import cache
from focus_peft.data.cache import load_table, write_table
from focus_peft.data.config import SourceConfig
from focus_peft.data.tokenizing import Encoder, tokenizer_fingerprint


PAIR = {"instruction_column": "instruction", "answer_column": "output"}
CHAT = TOKENIZER.chat_template


def encoder(
    min_tokens: int = 4, max_tokens: int = 1000, use_template: bool = True, template: str | None = CHAT
) -> Encoder:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template
    return Encoder(tokenizer, use_template, min_tokens, max_tokens)


def labeled(item: dict[str, list[int]]) -> str:
    """The text of an item's labels, which must be its own tokens."""
    ids, labels = item["input_ids"], item["labels"]
    assert len(ids) == len(labels)
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels))
    return TOKENIZER.decode([label for label in labels if label != IGNORE])


# Lengths


def test_long_documents_are_cut_into_consecutive_pieces(tmp_path: Path) -> None:
    document = "".join(f"{number:03d}" for number in range(100))  # 300 tokens
    path = write_lines(tmp_path / "a.jsonl", [{"text": document}])
    data = prepared(tmp_path, path, min_tokens=20, max_tokens=70)
    assert texts(data.train) == sorted(document[start : start + 70] for start in range(0, 300, 70))
    data = prepared(tmp_path, path, min_tokens=21, max_tokens=70)  # the last piece has 20
    assert texts(data.train) == sorted(document[start : start + 70] for start in range(0, 280, 70))
    assert data.report.sources[0].left_out == {"ends of documents": 1}


def test_every_token_of_a_text_is_a_label(tmp_path: Path) -> None:
    data = prepared(tmp_path, write_texts(tmp_path, 3), max_tokens=60)
    for number in range(len(data.train)):
        item = data.train[number]
        assert item["labels"] == item["input_ids"]
        assert set(map(type, item["input_ids"])) == {int}


def test_documents_of_min_tokens_are_kept_and_shorter_ones_are_not() -> None:
    encoded = encoder(min_tokens=10)(["x" * 10, "x" * 9], [None, None])
    assert encoded["length"] == [10, 0]
    assert encoded["left_out"] == [None, "documents that are too short"]


# Instruction pairs


def test_of_an_instruction_pair_only_the_answer_is_labeled(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"instruction": "Say something.", "output": "Something.", "input": ""}])
    item = prepared(tmp_path, {"path": str(path), **PAIR}).train[0]
    assert TOKENIZER.decode(item["input_ids"]) == "<s>user: Say something.\nassistant: Something.\n"
    assert labeled(item) == "Something.\n"


def test_the_prompt_of_a_pair_is_what_generation_sees() -> None:
    made = encoder()
    piece = made(["Why?"], ["Because."])
    seen = made.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, return_dict=False
    )
    assert piece["input_ids"][0][: piece["first_label"][0]] == seen


@pytest.mark.parametrize("without", [{"template": None}, {"use_template": False}])
def test_without_a_chat_template_a_pair_is_plain_text_that_ends(without: dict[str, Any]) -> None:
    made = encoder(**without)
    for bos in (False, True):
        if bos:
            made.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", BOS)]
            )
        made = Encoder(made.tokenizer, made.chat_template, 4, 1000)
        piece = made(["Why?"], ["Because."])
        assert made.tokenizer.decode(piece["input_ids"][0]) == "<s>" * bos + "Why?\n\nBecause.</s>"
        assert made.tokenizer.decode(piece["input_ids"][0][piece["first_label"][0] :]) == "Because.</s>"
        assert piece["input_ids"][0][-1] == EOS


def test_a_template_that_prompts_otherwise_than_it_writes_still_labels_the_answer() -> None:
    turns = "{% for m in messages %}{{ m['role'] }}={{ m['content'] }};{% endfor %}"
    template = turns + "{% if add_generation_prompt %}>>{% endif %}"
    made = encoder(template=template)
    piece = made(["Why?"], ["Because."])
    assert made.tokenizer.decode(piece["input_ids"][0]) == "user=Why?;>>Because.</s>"
    assert made.tokenizer.decode(piece["input_ids"][0][piece["first_label"][0] :]) == "Because.</s>"


def test_pairs_that_are_too_long_are_left_out_rather_than_cut(tmp_path: Path) -> None:
    rows = [{"instruction": "x" * size, "output": "Yes, of course."} for size in (10, 200)]
    data = prepared(tmp_path, {"path": str(write_lines(tmp_path / "a.jsonl", rows)), **PAIR}, max_tokens=100)
    assert len(data.train) == 1
    assert data.report.sources[0].left_out == {"instruction pairs that are too long": 1}


def test_pairs_without_instruction_or_answer_are_counted(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Why?", "output": "Because."},
        {"instruction": "Why?", "output": ""},
        {"instruction": "Why?"},
    ]
    data = prepared(tmp_path, {"path": str(write_lines(tmp_path / "a.jsonl", rows)), **PAIR})
    assert data.report.sources[0].left_out == {"empty documents": 1, "rows without text": 1}


# In parallel


@pytest.mark.slow
def test_tokens_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BATCH", 7)
    rows = [{"text": text(number, 20 + number)} for number in range(60)]
    source = SourceConfig(str(write_lines(tmp_path / "a.jsonl", rows)))
    for processes in (1, 2):
        write_table(tmp_path / str(processes), source, encoder(min_tokens=22, max_tokens=50), processes)
    alone, shared = load_table(tmp_path / "1"), load_table(tmp_path / "2")
    assert np.array_equal(alone.pieces, shared.pieces) and len(alone.pieces) > 60
    assert [alone.ids(piece) for piece in range(len(alone.pieces))] == shared.tokens["input_ids"][:]
    assert (alone.counts, alone.documents) == (shared.counts, shared.documents)
    assert alone.counts == {"documents that are too short": 2, "ends of documents": 21}


# The cache


def written(tmp_path: Path) -> dict[str, int]:
    """When each file of the cache was written."""
    return {path.as_posix(): path.stat().st_mtime_ns for path in sorted((tmp_path / "cache").rglob("*"))}


def test_a_source_is_tokenized_once(tmp_path: Path) -> None:
    path = write_texts(tmp_path, 5)
    first = prepared(tmp_path, path)
    files = written(tmp_path)
    second = prepared(tmp_path, {"path": str(path), "weight": 3.0}, seed=5, held_out=1, num_proc=4)
    assert written(tmp_path) == files
    assert texts(first.train) == sorted(texts(second.train) + texts(second.held_out))


def test_what_matters_is_tokenized_again(tmp_path: Path) -> None:
    path = write_texts(tmp_path, 5)
    prepared(tmp_path, path)
    tables = len(list((tmp_path / "cache").iterdir()))
    other = make_tiny_tokenizer()
    other.add_tokens(["Document"])
    split = make_tiny_tokenizer()
    split.split_special_tokens = True
    for fields in ({"max_tokens": 50}, {"min_tokens": 9}, {"tokenizer": other}, {"tokenizer": split}):
        prepared(tmp_path, path, **fields)
        tables += 1
        assert len(list((tmp_path / "cache").iterdir())) == tables


def test_a_file_that_changes_is_tokenized_again(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    path = write_texts(folder, 5)
    assert len(prepared(tmp_path, folder).train) == 5
    write_texts(folder, 2, first=5)  # a second file
    assert len(prepared(tmp_path, folder).train) == 7
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    tables = len(list((tmp_path / "cache").iterdir()))
    assert len(prepared(tmp_path, folder).train) == 7
    assert len(list((tmp_path / "cache").iterdir())) == tables + 1


def test_using_a_tokenizer_does_not_change_its_fingerprint() -> None:
    tokenizer = make_tiny_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before == tokenizer_fingerprint(make_tiny_tokenizer())
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(tokenizer) != before
    changes = ({}, {"max_tokens": 7}, {"min_tokens": 5}, {"use_template": False})
    assert len({encoder(**changed).fingerprint(before) for changed in changes}) == len(changes)


def test_a_source_may_have_a_max_tokens_of_its_own(tmp_path: Path) -> None:
    longer = {"path": str(write_texts(tmp_path, 3, 200)), "max_tokens": 200}
    data = prepared(tmp_path, longer, write_texts(tmp_path, 3, 200, first=10), max_tokens=100)
    assert sorted(lengths_of(data.train)) == [100] * 4 + [200] * 5  # shares are equal
    assert [source.train for source in data.report.sources] == [3, 6]


class Interrupt(BaseException):
    pass


class Interrupted(Encoder):
    """Is interrupted by the document that says "stop"."""

    def __call__(self, texts: list[str], answers: list[str | None]) -> dict[str, list[Any]]:
        if "stop" in texts[0]:
            self.stop()
        return super().__call__(texts, answers)

    def stop(self) -> None:
        raise Interrupt


class Killed(Interrupted):
    """Is killed by it."""

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def write_until_stopped(kind: type[Interrupted], directory: Path, path: Path) -> None:
    cache.BATCH = 2
    rows = [{"text": text(number)} for number in range(4)] + [{"text": "stop here and now"}]
    write_table(directory, SourceConfig(str(write_lines(path, rows))), kind(TOKENIZER, True, 4, 1000), None)


def test_an_interrupted_write_leaves_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BATCH", 2)
    directory = tmp_path / "cache" / "table"
    with pytest.raises(Interrupt):
        write_until_stopped(Interrupted, directory, tmp_path / "a.jsonl")
    assert load_table(directory) is None
    assert list(directory.parent.iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_process_left_is_no_cache_and_is_swept_up_later(tmp_path: Path) -> None:
    directory = tmp_path / "cache" / "table"
    ((code, _),) = run_apart(be_killed_while_writing, [(directory, tmp_path / "a.jsonl")], tmp_path)
    assert code == -signal.SIGKILL
    (scratch,) = directory.parent.iterdir()
    assert load_table(directory) is None
    source = SourceConfig(str(write_texts(tmp_path, 2)))
    write_table(directory, source, encoder(), None)
    assert load_table(directory).ids(0) == TOKENIZER(text(0))["input_ids"]
    assert scratch.exists()  # it might be another process's, still writing
    old = time.time() - cache.ABANDONED - 1
    for path in (scratch, *scratch.rglob("*")):
        os.utime(path, (old, old))
    write_table(directory, source, encoder(), None)
    assert not scratch.exists()


def test_a_cache_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = write_texts(tmp_path, 50, 1000)
    with refusal("`cache_dir`", str(tmp_path / "cache"), error=OSError), no_file_larger_than(20_000):
        prepared(tmp_path, path)
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "file").write_text("")
    with refusal("`cache_dir`", str(tmp_path / "file"), error=OSError):
        prepared(tmp_path / "file", path)


@pytest.mark.parametrize("damage", ["data-*.arrow", "dataset_info.json", "state.json"])
def test_a_damaged_table_is_written_again(tmp_path: Path, damage: str) -> None:
    path = write_texts(tmp_path, 5)
    before = texts(prepared(tmp_path, path).train)
    (file,) = (tmp_path / "cache").rglob(damage)
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[: whole // 2])
    assert texts(prepared(tmp_path, path).train) == before
    (file,) = (tmp_path / "cache").rglob(damage)
    assert file.stat().st_size == whole


def test_a_table_that_lacks_rows_is_written_again(tmp_path: Path) -> None:
    path = write_texts(tmp_path, 5)
    before = texts(prepared(tmp_path, path).train)
    (directory,) = (tmp_path / "cache").iterdir()
    whole = load_table(directory).tokens
    shorter = whole.select(range(4))
    shorter.save_to_disk(tmp_path / "shorter")
    (tmp_path / "shorter").rename(directory.rename(tmp_path / "old").parent / "cache" / directory.name)
    assert load_table(directory) is None
    assert texts(prepared(tmp_path, path).train) == before


@pytest.mark.slow
def test_without_datasets_a_sentence_names_the_extra(tmp_path: Path) -> None:
    ((code, printed),) = run_apart(read_without_datasets, [(tmp_path,)], tmp_path)
    assert code == 1
    assert printed.splitlines()[-1] == (
        "ImportError: Training data is read and kept by the package datasets; install it with "
        "`pip install 'focus_peft[train]'`."
    )
