"""Checkpoints that are whole or not there: written to a scratch folder and renamed when every process is done."""

from __future__ import annotations

import os
import re
from pathlib import Path

from transformers.trainer_callback import TrainerState


# Inside the output folder. The Hub upload of transformers' Trainer leaves out names that begin with an underscore
SCRATCH = "_saving"
STATE_FILE = "trainer_state.json"
NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(directory: str | os.PathLike) -> list[Path]:
    """The whole checkpoints in a folder, by step. What was being written when a run was killed is none."""
    place = Path(directory)
    if not place.is_dir():
        return []
    found = [path for path in place.iterdir() if NAME.fullmatch(path.name) and (path / STATE_FILE).is_file()]
    return sorted(found, key=step_of)


def last_checkpoint(directory: str | os.PathLike) -> Path | None:
    """The whole checkpoint of the highest step in a folder, or None."""
    return next(reversed(checkpoints(directory)), None)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was saved at."""
    return int(checkpoint.name.rpartition("-")[2])


def scratch_of(directory: str | os.PathLike) -> Path:
    """The folder inside a run's folder where checkpoints are written."""
    return Path(directory) / SCRATCH


def publish(scratch: Path, state: TrainerState) -> Path | None:
    """Give the checkpoint that was written in `scratch` its place beside it.

    A checkpoint of the same step from an earlier run makes room.

    Args:
        scratch (`Path`): `scratch_of(directory)`.
        state (`TrainerState`): Written into the checkpoint again: the best checkpoint's path in it was the scratch
            folder's.

    Returns:
        `Path`: the checkpoint, or None if there was nothing to publish.
    """
    written = next((path for path in scratch.glob("checkpoint-*") if NAME.fullmatch(path.name)), None)
    if written is None:
        return None
    if (written / STATE_FILE).is_file():
        state.save_to_json(str(written / STATE_FILE))
    final = scratch.parent / written.name
    if final.exists():
        os.replace(final, scratch / f"old-{written.name}")
    os.replace(written, final)
    return final


def rotate(directory: str | os.PathLike, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints, so that at most `limit` are left; the last and the best stay.

    Each moves to the scratch folder, for the caller to remove: half a checkpoint must not look like a whole one.
    """
    if limit is None or limit <= 0:
        return
    found = checkpoints(directory)
    kept = {found[-1]} if found else set()
    kept |= {path for path in found if best is not None and path.resolve() == Path(best).resolve()}
    doomed = [path for path in found if path not in kept]
    scratch = scratch_of(directory)
    for path in doomed[: max(0, len(found) - max(limit, len(kept)))]:
        scratch.mkdir(exist_ok=True)
        os.replace(path, scratch / f"removed-{path.name}")
