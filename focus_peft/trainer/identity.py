"""The identity of a run, from the trainer that makes it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from transformers import TrainerControl
from transformers.trainer_callback import ExportableState

from ..config import OPTIONS, FocusConfig
from ..hub.run_identity import RunIdentity
from ..hub.run_options import course_of


# Rows that a digest of the data is made of
ROWS = 64
# Of the adapter's configuration, what only decoding uses
NOT_IN_TRAINING = ("read_chunks", "keep_candidates")
# With these schedules, the learning rate of a step does not depend on how many steps are to come
ENDLESS = ("constant", "constant_with_warmup")


def identity_of(trainer: Any) -> RunIdentity:
    """What the checkpoints of a `FocusTrainer` depend on. All processes of a run call it together."""
    tuner = trainer.tuner
    return RunIdentity(
        {**_arguments(trainer), **trainer.depends_on},
        _adapter(tuner.active_config),
        tuner.fingerprint.to_dict(),
        {} if trainer.train_dataset is None else data_identity(trainer.train_dataset),
    )


def _arguments(trainer: Any) -> dict[str, Any]:
    args = trainer.args
    course = course_of(args)
    # however they are divided among processes
    course["micro-batches of a step"] = course.pop("gradient_accumulation_steps") * args.world_size
    if args.max_steps > 0:
        del course["num_train_epochs"]
    if course["lr_scheduler_type"] in ENDLESS:
        course.pop("num_train_epochs", None)
        del course["max_steps"]
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ExportableState) and not isinstance(callback, TrainerControl):
            known = callback.state().get("args", {})
            course.update({f"{type(callback).__name__}.{name}": value for name, value in known.items()})
    return course


def _adapter(config: FocusConfig) -> dict[str, Any]:
    names = [option.name for option in OPTIONS if not option.metadata["each_process"]]
    values = {name: getattr(config, name) for name in names if name not in NOT_IN_TRAINING}
    if config.r is not None:
        values["alpha"] = config.scaling * config.r
    return values


def data_identity(rows: Any) -> dict[str, Any]:
    """The number of documents, and a digest of some of them; empty for what cannot be looked at twice.

    Args:
        rows (`Sequence[Mapping]`): Documents. Those of an epoch are those of the first one.
    """
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__") or not len(rows):
        return {}
    with first_epoch(rows):
        if _digest([rows[0]]) != _digest([rows[0]]):
            return {"documents": len(rows)}  # drawn anew each time
        chosen = [rows[index] for index in range(0, len(rows), max(1, len(rows) // ROWS))]
        return {"documents": len(rows), "digest": _digest(chosen)}


@contextlib.contextmanager
def first_epoch(rows: Any) -> Iterator[None]:
    """Within the context, a dataset that has epochs is in its first one."""
    epoch = getattr(rows, "epoch", None)
    if not hasattr(rows, "set_epoch") or not isinstance(epoch, int):
        yield
        return
    rows.set_epoch(0)
    try:
        yield
    finally:
        rows.set_epoch(epoch)


def _digest(rows: list[Any]) -> str:
    plain = json.dumps(rows, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value))
    return hashlib.sha256(plain.encode()).hexdigest()[:16]
