"""Checkpoints that are whole or not there: written to a scratch folder and renamed when every process is done."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from peft.utils import CONFIG_NAME
from transformers.trainer_callback import TrainerState

from ..adapter_file import WEIGHTS_FILE
from .run_identity import IDENTITY_FILE


try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


# Inside the output folder. The Hub upload of transformers' Trainer leaves out names that begin with an underscore
SCRATCH = "_saving"
# Beside it: what an earlier run left there, when another one starts anew
EARLIER = "_earlier"
# What `recipes/train.py` writes into its output folder; and all that a run leaves besides checkpoints
RECIPE_FILE = "recipe.yaml"
RESULT = (WEIGHTS_FILE, CONFIG_NAME, IDENTITY_FILE, RECIPE_FILE)
# Where transformers puts TensorBoard's files
LOGS = "runs"
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


def is_in(directory: str | os.PathLike, checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint is one of those in a folder, whatever it is called by."""
    return any(os.path.samefile(checkpoint, path) for path in checkpoints(directory))


def best_beside(checkpoint: str | os.PathLike) -> str | None:
    """The best checkpoint that one of a run knows of, if it lies beside it.

    What it knows is a path, which is another when the run's folder was moved or copied.
    """
    best = TrainerState.load_from_json(str(Path(checkpoint, STATE_FILE))).best_model_checkpoint
    beside = None if best is None else Path(checkpoint).parent / Path(best).name
    return None if beside is None or not (beside / STATE_FILE).is_file() else str(beside)


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


def set_aside(directory: str | os.PathLike) -> Path | None:
    """Move what an earlier run left in a folder to a folder inside it, so that nothing takes it for the new run's.

    Returns:
        `Path`: the folder inside, or None if there was nothing.
    """
    place = Path(directory)
    left = [*checkpoints(place), *(place / name for name in RESULT if (place / name).is_file())]
    if not left:
        return None
    left += [place / LOGS] if (place / LOGS).is_dir() else []
    number = 1
    while (place / f"{EARLIER}-{number}").exists():
        number += 1
    aside = place / f"{EARLIER}-{number}"
    aside.mkdir()
    for path in left:
        os.replace(path, aside / path.name)
    return aside


@contextlib.contextmanager
def occupied(directory: str | os.PathLike) -> Iterator[None]:
    """Within the context, no other process can do the same with a folder; it is made if it is not there.

    Raises:
        ValueError: if another process does it now.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    place = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(place)
        raise ValueError(
            f"`output_dir` {str(directory)!r} is that of a training that runs now; wait for its end, or name another "
            "folder."
        ) from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(place)
