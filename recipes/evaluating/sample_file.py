"""`samples.jsonl`: every sample of an evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


# What tells samples apart
KEY = ("task", "method", "length", "number")


class SampleFile:
    """`samples.jsonl`: a line for each sample, on disk when `add` returns. A last line that was cut off is removed.

    Raises:
        BlockingIOError: if another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "a+b")  # noqa: SIM115  (stays open for as long as samples come)
        lock(self.file, path)
        self.file.seek(0)
        content = self.file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.file.truncate(len(whole))
        self.samples: dict[tuple, dict[str, Any]] = {}
        for line in whole.splitlines():  # bytes: a text is cut at the line separators of an answer, too
            sample = json.loads(line)
            self.samples[key_of(sample)] = sample

    def add(self, sample: dict[str, Any]) -> None:
        self.file.write(json.dumps(sample, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.samples[key_of(sample)] = sample

    def close(self) -> None:
        self.file.close()


def lock(file: Any, path: Path) -> None:
    """Keep a file that is open for this process alone.

    Raises:
        BlockingIOError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BlockingIOError(f"Another process is writing to {str(path)!r}; wait for it, or end it.") from error


def key_of(sample: Mapping[str, Any]) -> tuple:
    return tuple(sample[name] for name in KEY)
