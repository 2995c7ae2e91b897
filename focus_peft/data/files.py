"""Local files as documents or rows. What cannot be read is counted, and the rest goes on."""

from __future__ import annotations

import bz2
import codecs
import csv
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast


ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
# Names of what is counted, as the report and the warning spell them
BROKEN, UNDECODABLE = "broken lines", "texts that are not UTF-8"
UNREADABLE, BINARY = "unreadable files", "binary files"
# What is raised by a file that cannot be read to its end
FAILURES = (OSError, EOFError, zlib.error, lzma.LZMAError)
# A file with a zero byte among its first so many is no text
SNIFFED = 8192


def is_local(path: str) -> bool:
    """Whether a source's path is a file, a folder or a glob here, rather than a dataset's name on the Hub."""
    return glob.has_magic(path) or os.path.exists(os.path.expanduser(path))


def is_saved_dataset(path: str) -> bool:
    """Whether a path is a folder that `save_to_disk` of `datasets` wrote."""
    folder = Path(path).expanduser()
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def find_files(path: str) -> list[Path]:
    """The files of a path, in an order that is the same everywhere.

    Folders are searched; hidden files and folders and `__pycache__` are left out. A glob takes the files that it
    matches; one that matches only folders takes what is in them.

    Args:
        path (`str`): A file, a folder or a glob; `**` stands for any folders.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        found = _files_below(Path(path))
    elif os.path.exists(path):
        return [Path(path)]
    else:
        matches = [Path(match) for match in glob.glob(path, recursive=True)]
        found = [match for match in matches if match.is_file()]
        found = found or [file for match in matches if match.is_dir() for file in _files_below(match)]
        found = [file for file in found if "__pycache__" not in file.parts]
    if not found:
        raise FileNotFoundError(f"`path` of a source is {path!r}, but no file is there; correct it.")
    return sorted(set(found), key=lambda file: file.as_posix())


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise PermissionError(
            f"`path` of a source has the folder {error.filename!r}, which cannot be read ({error.strerror}); make it "
            "readable, or name what is beside it."
        ) from error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        files += [path for path in paths if path.is_file()]
    return files


def kind_of(file: Path) -> str:
    """The suffix that says how a file is read, `.gz` and others of its kind left aside."""
    return (file.with_suffix("") if file.suffix.lower() in PACKED else file).suffix.lower()


def read_text(file: Path, counts: Counter[str]) -> str | None:
    """A text file as one document. None, and counted, if it is none."""
    try:
        with _opened(file) as stream:
            data = stream.read()
    except FAILURES:
        counts[UNREADABLE] += 1
        return None
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # the first begins like UTF-16's
        encoding = "utf-32"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data[:SNIFFED]:
        counts[BINARY] += 1
        return None
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        counts[UNDECODABLE] += 1
        return None


def read_rows(file: Path, columns: tuple[str, ...], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file. Broken ones are counted.

    A row of a Parquet file has those of `columns` that there are, and None for every other, so that not all of it is
    read.
    """
    kind = kind_of(file)
    try:
        if kind == ".parquet":
            yield from _parquet_rows(file, columns)
        elif kind == ".json":
            yield from _json_rows(file, counts)
        elif kind in (".csv", ".tsv"):
            yield from _table_rows(file, "\t" if kind == ".tsv" else ",", counts)
        else:
            with _opened(file) as stream:
                yield from _line_rows(stream, counts)
    except FAILURES:
        counts[UNREADABLE] += 1


def _zstandard(file: Path, mode: str) -> IO[bytes]:
    import pyarrow as pa  # which `datasets` needs

    stream: Any = pa.CompressedInputStream(pa.OSFile(str(file), mode), "zstd")
    return cast("IO[bytes]", io.BufferedReader(stream))


# How packed files are opened
PACKED: dict[str, Callable[[Path, Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}


def _opened(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", PACKED.get(file.suffix.lower(), open)(file, "rb"))


def _table_rows(file: Path, delimiter: str, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table whose first line names the columns. One that has not as many fields as these is broken."""
    with _opened(file) as stream:
        try:
            lines = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
            for row in lines:
                if None in row or None in row.values():
                    counts[BROKEN] += 1
                else:
                    yield row
        except UnicodeDecodeError:  # what was read before stays
            counts[UNDECODABLE] += 1
        except csv.Error:
            counts[BROKEN] += 1


def _line_rows(lines: Any, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            counts[UNDECODABLE] += 1
        except (ValueError, RecursionError):
            counts[BROKEN] += 1
        else:
            if isinstance(row, dict):
                yield row
            else:
                counts[BROKEN] += 1


def _json_rows(file: Path, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """A list of objects, one object, or, whatever the file is called, one object a line."""
    with _opened(file) as stream:
        data = stream.read()
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        yield from _line_rows(data.splitlines(), counts)
        return
    for row in content if isinstance(content, list) else [content]:
        if isinstance(row, dict):
            yield row
        else:
            counts[BROKEN] += 1


def _parquet_rows(file: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _opened(file) as stream:
            table = pq.ParquetFile(pa.BufferReader(stream.read()) if file.suffix.lower() in PACKED else stream)
            names = table.schema_arrow.names
            wanted = [name for name in columns if name in names]
            if not wanted:  # the rows count, and their columns are told
                yield from (dict.fromkeys(names) for _ in range(table.metadata.num_rows))
                return
            for batch in table.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    yield {**dict.fromkeys(names), **row}
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
