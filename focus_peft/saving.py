"""Files that are written whole or not at all: a full disk or a kill leaves what was there."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


@contextlib.contextmanager
def saving_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields a hidden folder to write to. When the context ends without an error, its files move to `folder`, which is
    made if it is not there; after an error nothing is left of them.
    """
    target = Path(folder).absolute()
    new = not target.exists()
    # inside a folder that is there: it may be where a disk is mounted, or the only place that may be written to
    scratch = (target.parent if new else target) / f".{target.name}.{uuid.uuid4().hex[:8]}"
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if new:
            os.replace(scratch, target)
            return
        for file in sorted(path for path in scratch.rglob("*") if path.is_file()):
            final = target / file.relative_to(scratch)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Within the context, a full disk is an OSError that names what could not be written, whoever notices it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # It is a SafetensorError to safetensors, and a RuntimeError of its zip writer to torch.save
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        raise OSError(f"{what} could not be written: {error}.") from error


def write_whole(file: str | os.PathLike, data: str | bytes) -> None:
    """Write a text, or bytes. A file that is there is replaced when the new one is whole on the disk."""
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(partial, "wb") as output:
            output.write(data.encode() if isinstance(data, str) else data)
            output.flush()
            os.fsync(output.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    sync_names(target.parent)


def sync_names(folder: Path) -> None:
    """Let the names in a folder be on the disk."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
