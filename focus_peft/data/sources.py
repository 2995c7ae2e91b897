"""The documents of a source: local files, or a dataset of the Hub."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .config import SourceConfig
from .files import ROW_SUFFIXES, UNDECODABLE, find_files, is_local, is_saved_dataset, kind_of, read_rows, read_text


EMPTY, WITHOUT_TEXT = "empty documents", "rows without text"
NO_ROWS = "files that hold no rows"
# Columns that a message names, and those that hold conversations
NAMED = 20
CHATS = {"messages", "conversations", "conversation"}


@dataclass(frozen=True)
class Document:
    """A text; or, with `answer`, an instruction and what follows it."""

    text: str
    answer: str | None = None


@dataclass
class Reading:
    """What became of a source's documents so far.

    Attributes:
        counts (`Counter[str]`): How much was left out, by reason.
        columns (`dict[str, None]`): Columns that were seen, in order.
        found (`set[str]`): Those of the wanted columns that were seen.
        is_table (`bool`): Rows came from something that is nothing but rows, not from a stray `.json` file.
    """

    counts: Counter[str] = field(default_factory=Counter)
    columns: dict[str, None] = field(default_factory=dict)
    found: set[str] = field(default_factory=set)
    is_table: bool = False
    documents: int = 0


def reads_files(source: SourceConfig) -> bool:
    """Whether the files are read here, rather than by `datasets`."""
    asks_datasets = source.streaming or any(
        given is not None for given in (source.name, source.split, source.revision)
    )
    return is_local(source.path) and not asks_datasets and not is_saved_dataset(source.path)


def read_documents(source: SourceConfig, reading: Reading) -> Iterator[Document]:
    """The documents of a source, in an order that is always the same. What is left out is counted in `reading`.

    Raises:
        FileNotFoundError: if there is no such file or dataset.
        ValueError: if no row has the column that holds the text; the message names the columns that there are.
        ImportError: if `datasets` is needed and missing.
    """
    rows = _documents_of_files(source, reading) if reads_files(source) else _documents_of_dataset(source, reading)
    for document in rows:
        reading.documents += 1
        yield document
        if reading.documents == source.max_documents:
            return
    missing = [column for column in source.columns if column not in reading.found]
    if missing and reading.columns and (reading.is_table or not reading.documents):
        raise ValueError(_missing(source, missing, reading.columns))


def _documents_of_files(source: SourceConfig, reading: Reading) -> Iterator[Document]:
    for file in find_files(source.path):
        kind = kind_of(file)
        if kind in ROW_SUFFIXES:
            reading.is_table = reading.is_table or kind != ".json"
            yield from _documents_of_rows(read_rows(file, source.columns, reading.counts), source, reading)
            continue
        if source.answer_column is not None:
            reading.counts[NO_ROWS] += 1
            continue
        text = read_text(file, reading.counts)
        if text is not None:
            yield from _checked(Document(text), reading.counts)


def _documents_of_dataset(source: SourceConfig, reading: Reading) -> Iterator[Document]:
    dataset = load(source)
    columns = dataset.column_names
    if columns is not None:  # a stream does not always know
        missing = [column for column in source.columns if column not in columns]
        if missing:
            raise ValueError(_missing(source, missing, columns))
        dataset = dataset.select_columns(list(source.columns))
    reading.is_table = True
    yield from _documents_of_rows(dataset, source, reading)


def _documents_of_rows(
    rows: Iterable[Mapping[str, Any]], source: SourceConfig, reading: Reading
) -> Iterator[Document]:
    for row in rows:
        if len(reading.columns) < 1000:
            reading.columns.update(dict.fromkeys(row))
        reading.found.update(column for column in source.columns if column in row)
        values = [row.get(column) for column in source.columns]
        if not all(isinstance(value, str) for value in values):
            reading.counts[WITHOUT_TEXT] += 1
        else:
            yield from _checked(Document(*values), reading.counts)  # type: ignore[arg-type]


def _checked(document: Document, counts: Counter[str]) -> Iterator[Document]:
    parts = [document.text] if document.answer is None else [document.text, document.answer]
    try:
        for part in parts:
            part.encode("utf-8")  # JSON can spell half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError:
        counts[UNDECODABLE] += 1
        return
    if all(part.strip() for part in parts):
        yield document
    else:
        counts[EMPTY] += 1


def load(source: SourceConfig) -> Any:
    """The `datasets.Dataset`, or `IterableDataset` of a streamed source.

    Raises:
        FileNotFoundError: if it cannot be found or reached.
        ValueError: if it is a file.
        ImportError: if `datasets` is missing.
    """
    if not is_local(source.path) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.path):
        raise FileNotFoundError(
            f"`path` of a source is {source.path!r}, which is no file, folder or glob here, and no name of a dataset; "
            "correct it."
        )
    if is_local(source.path) and not os.path.isdir(os.path.expanduser(source.path)):
        raise ValueError(
            f"`path` of a source is {source.path!r}, which names files, but `name`, `split`, `revision` and "
            "`streaming` are for datasets of the Hub and folders; leave them out."
        )
    split = source.split or "train"
    try:
        with progress_bars():
            if is_saved_dataset(source.path):
                return _saved(source, split)
            return import_datasets().load_dataset(
                os.path.expanduser(source.path),
                source.name,
                split=split,
                streaming=source.streaming,
                revision=source.revision,
            )
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"`path` of a source is {source.path!r}, which is no file, folder or glob here, and no dataset that can "
            f"be loaded from the Hub: {error}"
        ) from error


def _saved(source: SourceConfig, split: str) -> Any:
    """A dataset that `save_to_disk` wrote, or the split of several."""
    found = import_datasets().load_from_disk(os.path.expanduser(source.path))
    if not isinstance(found, dict):
        if source.split is not None:
            raise ValueError(
                f"`split` of the source {source.path!r} is {split!r}, but `save_to_disk` wrote a dataset without "
                "splits there; leave it out."
            )
        return found
    if split not in found:
        raise ValueError(
            f"`split` of the source {source.path!r} is {split!r}, but the splits there are {', '.join(found)}; name "
            "one of them."
        )
    return found[split]


def import_datasets() -> Any:
    """The package `datasets`.

    Raises:
        ImportError: if it is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Training data is read and kept by the package datasets; install it with `pip install "
            "'focus_peft[train]'`."
        ) from error
    return datasets


@contextmanager
def progress_bars() -> Iterator[None]:
    """Within the context, `datasets` shows progress bars on a terminal only."""
    datasets = import_datasets()
    hide = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    try:
        if hide:
            datasets.disable_progress_bars()
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def _missing(source: SourceConfig, missing: list[str], columns: Iterable[str]) -> str:
    names = sorted(columns)
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    option = "`text_column`" if len(source.columns) == 1 else "`instruction_column` and `answer_column`"
    if CHATS & set(names) and len(source.columns) == 1:
        return (
            f"The source {source.path!r} has no column {missing[0]!r}; its columns are {shown}. `FocusSFTTrainer` "
            "(`focus_peft.sft`) trains on conversations; or write question and answer into two columns, and name "
            "them with `instruction_column` and `answer_column`."
        )
    return (
        f"The source {source.path!r} has no column {' or '.join(map(repr, missing))}; its columns are {shown}. "
        f"Name the right one with {option}."
    )
