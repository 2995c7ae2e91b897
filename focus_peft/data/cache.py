"""Tokens on disk, written once. A table is there as a whole or not at all: it is written beside its place and renamed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HOME

from .config import SourceConfig
from .files import find_files, is_local
from .sources import Reading, load, reads_files
from .tokenizing import PIECE, Encoded


# Goes up when the same source would be written in another way
VERSION = 1
TOKENS, PIECES, DESCRIPTION = "tokens.bin", "pieces.npy", "description.json"
# Seconds without a write after which an unfinished table is taken for abandoned
ABANDONED = 24 * 3600


@dataclass
class TokenTable:
    """The pieces of a source.

    Attributes:
        directory (`Path`): Where it is.
        pieces (`np.ndarray` of `PIECE`): Where the tokens of each are.
        documents (`int`): How many were read.
        counts (`Counter[str]`): What was left out, by reason.
    """

    directory: Path
    pieces: np.ndarray
    documents: int
    counts: Counter[str]

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """Of all pieces, int32, mapped from the file."""
        return np.memmap(self.directory / TOKENS, dtype=np.int32, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # a process that gets the table maps the file itself, instead of being sent all tokens
        return {name: value for name, value in self.__dict__.items() if name != "tokens"}

    def ids(self, piece: int) -> list[int]:
        row = self.pieces[piece]
        return self.tokens[row["start"] : row["start"] + row["length"]].tolist()


def default_cache_dir() -> Path:
    return Path(HF_HOME, "focus_peft", "data")


def cache_key(source: SourceConfig, fingerprint: str) -> str:
    """A name for a source's tokens that changes with the source's content and with the tokenizer.

    Files count by path, size and time of their last change, a dataset by its own fingerprint. A dataset that is streamed from the
    Hub counts by name, split and revision alone, so that a finished cache needs no connection.

    Args:
        source (`SourceConfig`): Its `weight` does not matter.
        fingerprint (`str`): The encoder's.
    """
    elsewhere = ("weight", "documents", "max_tokens")  # do not change the tokens, or are in the fingerprint
    described = {name: value for name, value in asdict(source).items() if name not in elsewhere}
    parts: list[Any] = [VERSION, fingerprint, described]
    if is_local(source.path):
        for file in find_files(source.path):
            status = file.stat()
            parts.append([file.as_posix(), status.st_size, status.st_mtime_ns])
    if not reads_files(source) and not source.streaming:
        parts.append(load(source)._fingerprint)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def load_table(directory: Path) -> TokenTable | None:
    """The table in a directory; None if there is none, or not all of it."""
    try:
        description = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
        pieces = np.load(directory / PIECES)
        table = TokenTable(directory, pieces, description["documents"], Counter(description["counts"]))
        if (len(table.tokens), len(pieces)) != (description["tokens"], description["pieces"]) or pieces.dtype != PIECE:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return table


def write_table(directory: Path, encoded: Iterable[Encoded], reading: Reading) -> Counter[str]:
    """Write a table, unless there is nothing to write; what was there before is replaced.

    Args:
        directory (`Path`): Its place. It appears when all is written.
        encoded (`Iterable[Encoded]`): In order.
        reading (`Reading`): Filled by whatever feeds `encoded`.

    Returns:
        `Counter[str]`: what was left out, by reason.

    Raises:
        OSError: if writing fails, for example on a full disk; nothing half-written is left behind.
    """
    with _writing(directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        scratch = Path(tempfile.mkdtemp(prefix=f"{directory.name}.unfinished-", dir=directory.parent))
    try:
        pieces = [np.zeros(0, PIECE)]
        counts: Counter[str] = Counter()
        end = 0
        with open(scratch / TOKENS, "wb", buffering=0) as stream:
            for part in encoded:
                with _writing(directory.parent):
                    _write(stream, part.tokens.tobytes())
                shifted = part.pieces.copy()
                shifted["start"] += end
                pieces.append(shifted)
                counts += part.counts
                end += len(part.tokens)
            os.fsync(stream.fileno())
        joined = np.concatenate(pieces)
        counts += reading.counts
        if not len(joined):
            return counts
        description = {"documents": reading.documents, "tokens": end, "pieces": len(joined), "counts": counts}
        with _writing(directory.parent):
            for name, data in ((PIECES, _npy(joined)), (DESCRIPTION, json.dumps(description, indent=2).encode())):
                with open(scratch / name, "wb", buffering=0) as stream:
                    _write(stream, data)
                    os.fsync(stream.fileno())
            os.chmod(scratch, 0o777 & ~_umask())  # a scratch directory is private, a cache may be shared
            _move(scratch, directory)
        return counts
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _writing(parent: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"`cache_dir` {str(parent)!r} could not be written: {error}; name another one.") from error


def _write(stream: FileIO, data: bytes) -> None:
    """Write all of it. Without a buffer, which would be written once more, in vain, when the file is closed."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def _npy(array: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _move(scratch: Path, directory: Path) -> None:
    try:
        os.rename(scratch, directory)
    except OSError:
        if load_table(directory) is not None:
            return  # another process was faster
        shutil.rmtree(directory, ignore_errors=True)  # a damaged table
        os.rename(scratch, directory)


def _sweep(directory: Path) -> None:
    """Remove what killed processes left of this table."""
    for scratch in directory.parent.glob(f"{directory.name}.unfinished-*"):
        try:
            newest = max(path.stat().st_mtime for path in [scratch, *scratch.iterdir()])
        except OSError:
            continue
        if time.time() - newest > ABANDONED:
            shutil.rmtree(scratch, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
