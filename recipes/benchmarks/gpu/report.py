"""The JSON of a part: cells that are written as soon as they are measured, within the part's own time."""

from __future__ import annotations

import contextlib
import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lib.result_files import git_commit, write_json

from focus_peft.hub.results import environment
from focus_peft.trainer.metrics import peak_memory


OK, SKIPPED, FAILED, OUT_OF_MEMORY = "ok", "skipped", "failed", "out of memory"
# Whatever a cell may cost that is not worth starting
LEAST_SECONDS = 1.0


@dataclass(frozen=True)
class Options:
    """What all parts are run with.

    Attributes:
        output (`Path`): The folder of the JSONs.
        device (`torch.device`): Where everything is measured.
        small (`bool`): Tiny sizes, for the CPU.
        seconds (`float`): How long a part may take.
        command (`str`): What was run.
        r (`int`, *optional*): Rank of the twins that read and decode. None: full copies.
        base, adapter (`Path`, *optional*): Folders of the model and the adapter that are asked for passkeys.
        texts (`str`, *optional*): Texts that the adapter is trained on, as a glob.
        training_seconds (`float`): How long the adapter is trained.
        max_part_mb (`int`): Size of the largest file of a checkpoint.
    """

    output: Path
    device: torch.device
    small: bool = False
    seconds: float = 170.0
    command: str = ""
    r: int | None = 64
    base: Path | None = None
    adapter: Path | None = None
    texts: str | None = None
    training_seconds: float = 60.0
    max_part_mb: int = 15

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.small else torch.bfloat16


class OutOfTime(Exception):
    """The part's time is over."""


class Report:
    """What a part has measured so far. Every cell is written to the part's file when it is done.

    Args:
        part (`str`): Its name, and the name of its file.
        options (`Options`): What it is run with.
    """

    def __init__(self, part: str, options: Options) -> None:
        self.options = options
        self.file = options.output / f"{part}.json"
        self.begin = time.perf_counter()
        self.cells: list[dict[str, Any]] = []
        self.values: dict[str, Any] = {"part": part, **origin(options), "notes": []}
        self.write()

    @property
    def seconds_left(self) -> float:
        return self.options.seconds - (time.perf_counter() - self.begin)

    def note(self, sentence: str) -> None:
        self.values["notes"].append(sentence)
        self.write()

    def cell(
        self, measure: Callable[[], dict[str, Any]], expected_seconds: float = 0.0, **names: Any
    ) -> dict[str, Any]:
        """Measure one cell and write it. What goes wrong in it is a part of it, and the rest goes on.

        Args:
            measure (`Callable`): Measures it.
            expected_seconds (`float`): What it will take. It is skipped where that is not left.
            **names: What the cell is about.
        """
        left = self.seconds_left
        if max(expected_seconds, LEAST_SECONDS) > left:
            there = f"{max(0, left):.0f} s were left of the part's {self.options.seconds:.0f}"
            reason = f"it takes about {expected_seconds:.0f} s, and {there}"
            return self.skip(reason, **names)
        forget_peak(self.options.device)
        begin = time.perf_counter()
        try:
            with alarm(left):
                found = {"status": OK, **measure(), "peak_memory_gb": peak_gb(self.options.device)}
        except OutOfTime:
            found = {
                "status": SKIPPED,
                "reason": f"it took longer than the {left:.0f} s that were left of the part's time",
            }
        except Exception as error:
            found = failure(error)
        free(self.options.device)
        return self._add({**names, **found, "cell_seconds": round(time.perf_counter() - begin, 2)})

    def skip(self, reason: str, **names: Any) -> dict[str, Any]:
        """Write that a cell was not measured, and why."""
        return self._add({**names, "status": SKIPPED, "reason": reason})

    def _add(self, cell: dict[str, Any]) -> dict[str, Any]:
        self.cells.append(cell)
        self.write()
        words = ", ".join(f"{name} {value}" for name, value in cell.items() if name not in ("traceback", "steps"))
        print(f"  {words}"[:400], flush=True)
        return cell

    def note_failure(self, error: Exception) -> None:
        """Write that the rest of the part could not run, and why."""
        self.values["traceback"] = traceback.format_exc()[-3000:]
        self.note(f"The rest of the part failed: {type(error).__name__}: {error}"[:600])

    def write(self) -> None:
        """Write the file; one that is there is replaced when the new one is whole."""
        self.values["seconds"] = round(time.perf_counter() - self.begin, 1)
        write_json(self.file, {**self.values, "cells": self.cells})


def origin(options: Options) -> dict[str, Any]:
    """What was run, on what, and with which versions."""
    name, memory = "CPU", None
    if options.device.type == "cuda":
        name = torch.cuda.get_device_name(options.device)
        memory = round(torch.cuda.get_device_properties(options.device).total_memory / 1e9, 1)
    return {
        "command": options.command,
        "commit": git_commit(),
        "device": name,
        "device_memory_gb": memory,
        "cuda": torch.version.cuda,
        **environment("accelerate", "safetensors", "flash_attn"),
        "dtype": str(options.dtype).removeprefix("torch."),
        "small": options.small,
        "limit_seconds": options.seconds,
    }


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Within the context, `OutOfTime` is raised after so many seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def failure(error: Exception) -> dict[str, Any]:
    """What a cell says of an error that is being handled."""
    found = {"status": FAILED, "reason": f"{type(error).__name__}: {error}"[:600]}
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "out of memory" in str(error).lower():
        return {**found, "status": OUT_OF_MEMORY}
    return {**found, "traceback": traceback.format_exc()[-1500:]}


def forget_peak(device: torch.device) -> None:
    """Start to measure the most memory anew, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    """The most memory since then, in GB (10^9 bytes): allocated on the card, or resident in this process."""
    return round(peak_memory(device) / 1e9, 3)


def free(device: torch.device) -> None:
    """Give back what nobody holds any longer."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
