"""Tokens on disk, written once with `datasets`: beside their place, then renamed, so that no table is half one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from huggingface_hub.constants import HF_HOME

from .config import SourceConfig
from .files import find_files, is_local
from .sources import Reading, import_datasets, load, progress_bars, read_documents, reads_files
from .tokenizing import PIECE, Encoder


# Goes up when the same source would be written in another way
VERSION = 3
# Documents that are tokenized at once
BATCH = 64
# Seconds without a write after which an unfinished table counts as abandoned
ABANDONED = 24 * 3600


@dataclass
class TokenTable:
    """The pieces of a source.

    Attributes:
        tokens (`datasets.Dataset`): A row for each piece, mapped from the disk.
        pieces (`np.ndarray` of `PIECE`): The length, labels and origin of each piece.
        documents (`int`): How many documents were read.
        counts (`Counter[str]`): What was left out, by reason.
    """

    tokens: Any
    pieces: np.ndarray
    documents: int
    counts: Counter[str]

    def ids(self, piece: int) -> list[int]:
        return self.tokens[int(piece)]["input_ids"]


def default_cache_dir() -> Path:
    return Path(HF_HOME, "focus_peft", "data")


def cache_key(source: SourceConfig, fingerprint: str) -> str:
    """A name for a source's tokens that changes with the source's content and with the tokenizer.

    Files count by path, size and time of their last change, a dataset by its own fingerprint. A dataset that is
    streamed from the Hub counts by name, split and revision alone, so that a finished cache needs no connection.

    Args:
        source (`SourceConfig`): Its `weight` does not matter.
        fingerprint (`str`): The encoder's.
    """
    elsewhere = ("weight", "documents", "max_tokens")  # do not change the tokens, or are in the fingerprint
    described = {name: value for name, value in asdict(source).items() if name not in elsewhere}
    parts: list[Any] = [VERSION, fingerprint, described]
    if not is_local(source.path):
        described["split"] = source.split or "train"
    else:
        for file in find_files(source.path):
            status = file.stat()
            parts.append([file.as_posix(), status.st_size, status.st_mtime_ns])
    if not reads_files(source) and not source.streaming:
        parts.append(load(source)._fingerprint)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def load_table(directory: Path) -> TokenTable | None:
    """The table in a directory. None if there is none, or if it is damaged."""
    try:
        tokens = import_datasets().load_from_disk(str(directory))
        description = json.loads(tokens.info.description)
        pieces = np.zeros(len(tokens), PIECE)
        for name in PIECE.names or ():
            pieces[name] = tokens.data.column(name).to_numpy()
        if [len(pieces), int(pieces["length"].sum())] != [description["pieces"], description["tokens"]]:
            return None
        return TokenTable(tokens, pieces, description["documents"], Counter(description["counts"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_table(directory: Path, source: SourceConfig, encoder: Encoder, num_proc: int | None) -> Counter[str]:
    """Read and tokenize a source, and write its table, unless nothing is left; what was there before is replaced.

    Args:
        directory (`Path`): Its place. It appears when all is written.
        source (`SourceConfig`), encoder (`Encoder`): Decide the tokens.
        num_proc (`int`, *optional*): Processes that tokenize. The tokens, and their order, do not depend on it.

    Returns:
        `Counter[str]`: what was left out, by reason.

    Raises:
        OSError: if writing fails, for example on a full disk; nothing half-written is left behind.
    """
    reading, failures = Reading(), list[Exception]()

    def rows() -> Iterator[dict[str, Any]]:
        try:
            for document in read_documents(source, reading):
                yield asdict(document)
        except Exception as error:
            failures.append(error)  # `datasets` raises an error of its own instead
            raise

    scratch = directory.with_name(f"{directory.name}.unfinished-{uuid4().hex}")
    try:
        _remove_abandoned(directory)
        scratch.mkdir(parents=True)
        with progress_bars():
            left_out = _write(scratch, rows, encoder, num_proc, reading)
        if (scratch / "table").exists():
            _move(scratch / "table", directory)
        return left_out
    except Exception as error:
        if failures:
            raise failures[0] from None
        if isinstance(error.__cause__ or error, OSError):
            raise OSError(
                f"`cache_dir` {str(directory.parent)!r} could not be written: {error.__cause__ or error}; name "
                "another one."
            ) from error
        if reading.documents:
            raise
        return reading.counts  # `datasets` refuses to make a dataset of no rows
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(scratch: Path, rows: Any, encoder: Encoder, num_proc: int | None, reading: Reading) -> Counter[str]:
    """Write the texts, from them the tokens, and those that are kept as `scratch / "table"`."""
    datasets = import_datasets()
    features, value = datasets.Features, datasets.Value
    texts = datasets.Dataset.from_generator(
        rows,
        features({"text": value("string"), "answer": value("string")}),
        cache_dir=str(scratch / "texts"),
        writer_batch_size=BATCH,
    )
    columns = {"input_ids": datasets.Sequence(value("int32")), "left_out": value("string")}
    columns |= {name: value("int64") for name in PIECE.names or ()}
    tokens = texts.map(
        encoder,
        batched=True,
        batch_size=BATCH,
        input_columns=["text", "answer"],
        remove_columns=texts.column_names,
        features=features(columns),
        num_proc=None if num_proc is None else min(num_proc, len(texts)),
        new_fingerprint="tokens",  # the scratch folder is new
    )
    reasons = tokens.data.column("left_out").to_pylist()
    counts = reading.counts + Counter(reason for reason in reasons if reason)
    kept = [number for number, reason in enumerate(reasons) if reason is None]
    if kept:
        table = tokens.select(kept).remove_columns("left_out")
        size = int(tokens.data.column("length").to_numpy().sum())
        description = {"documents": reading.documents, "pieces": len(table), "tokens": size, "counts": counts}
        table.info.description = json.dumps(description)
        table.save_to_disk(str(scratch / "table"))
    return counts


def _move(table: Path, directory: Path) -> None:
    try:
        os.rename(table, directory)
    except OSError:
        if load_table(directory) is not None:
            return  # another process was faster
        shutil.rmtree(directory, ignore_errors=True)  # a damaged table
        os.rename(table, directory)


def _remove_abandoned(directory: Path) -> None:
    """Remove what killed processes left of this table."""
    for scratch in directory.parent.glob(f"{directory.name}.unfinished-*"):
        try:
            newest = max(path.stat().st_mtime for path in [scratch, *scratch.rglob("*")])
        except OSError:
            continue
        if time.time() - newest > ABANDONED:
            shutil.rmtree(scratch, ignore_errors=True)
