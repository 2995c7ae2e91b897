"""Checkpoints that are whole or not there, whatever kills the run."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from transformers.trainer import SCHEDULER_NAME

from ..hub.run_folder import STATE_FILE, last_checkpoint, publish, rotate, scratch_of, set_aside
from ..saving import disk_errors
from .uploads import ListedUploads


logger = logging.getLogger(__name__)


def check_complete(checkpoint: str) -> None:
    """Raise a ValueError for a checkpoint without optimizer or schedule, which would begin anew without a word."""
    folder = Path(checkpoint)
    by_deepspeed = any(folder.glob("global_step*"))
    if not by_deepspeed and not (any(folder.glob("*optimizer*")) and (folder / SCHEDULER_NAME).is_file()):
        raise ValueError(
            f"The checkpoint {checkpoint!r} has no state of the optimizer or the schedule (`save_only_model=True` "
            "leaves them out), so the run cannot go on from it; start anew from its weights: without resuming, with "
            f"`PeftModel.from_pretrained(base, {checkpoint!r}, is_trainable=True)` as the model, or "
            "`run.initial_adapter` of a recipe."
        )


class WholeCheckpoints(ListedUploads):
    """A `Trainer` that writes each checkpoint to a scratch folder, and renames it when every process is done."""

    _scratch: Path | None = None
    # `save_total_limit`, while a run holds it back
    _limit: int | None = None

    def checkpoint_to_resume(self, resume_from_checkpoint: str | os.PathLike | bool | None) -> str | None:
        """The folder that [`FocusTrainer.train`] resumes from; its argument.

        Raises:
            ValueError: for True or a folder, if there is no whole checkpoint.
        """
        if not resume_from_checkpoint:
            return None
        if resume_from_checkpoint is not True and resume_from_checkpoint != "auto":
            folder = os.fspath(resume_from_checkpoint)
            if not Path(folder, STATE_FILE).is_file():
                raise ValueError(
                    f"`resume_from_checkpoint` is {folder!r}, where there is no whole checkpoint; name its folder, or "
                    '"auto" for the last one in `output_dir`.'
                )
            return folder
        last = last_checkpoint(cast(str, self.args.output_dir))
        if last is None and resume_from_checkpoint is True:
            raise ValueError(
                f"`resume_from_checkpoint` is True, but there is no whole checkpoint in {self.args.output_dir!r}; "
                "leave it out to start anew."
            )
        return None if last is None else str(last)

    def remove_scratch(self) -> None:
        """Remove what a killed run left of a checkpoint."""
        if self.is_local_process_zero():
            shutil.rmtree(scratch_of(cast(str, self.args.output_dir)), ignore_errors=True)

    def start_anew(self) -> None:
        """Set aside what an earlier run left in `output_dir`: its checkpoints must not be taken for this run's."""
        for turn in (self.is_world_process_zero(), self.is_local_process_zero()):
            aside = set_aside(cast(str, self.args.output_dir)) if turn else None
            if aside is not None:
                logger.warning("What an earlier run left in `output_dir` was moved to %r.", str(aside))
            self.accelerator.wait_for_everyone()

    def hold_limit_back(self) -> None:
        """Keep `save_total_limit` from transformers' Trainer, until `give_limit_back`.

        At the end of a run, with a limit of 1, it removes the last checkpoint where another is the best: the one that
        an interrupted run goes on from.
        """
        if self.args.save_total_limit is not None:  # a run that tries a smaller batch begins twice
            self._limit, self.args.save_total_limit = self.args.save_total_limit, None

    def give_limit_back(self) -> None:
        """Undo `hold_limit_back`, if it was called."""
        if self._limit is not None:
            self.args.save_total_limit, self._limit = self._limit, None

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._scratch is None else str(self._scratch)

    @contextlib.contextmanager
    def _writing_to(self, scratch: Path) -> Iterator[None]:
        """Within the context, checkpoints go to a scratch folder and are not uploaded."""
        uploads = self.args.push_to_hub
        self._scratch, self.args.push_to_hub = scratch, False
        try:
            yield
        finally:
            self._scratch, self.args.push_to_hub = None, uploads

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        directory = self._get_output_dir(trial)
        scratch = scratch_of(directory)
        final = Path(directory) / f"checkpoint-{self.state.global_step}"
        if self.is_local_process_zero():
            shutil.rmtree(scratch, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with self._writing_to(scratch), disk_errors(f"The checkpoint {str(final)!r}"):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(scratch / final.name):
            self.state.best_model_checkpoint = str(final)
        # one process for a shared disk, then one for each node that has a disk of its own
        for turn in (self.is_world_process_zero(), self.is_local_process_zero()):
            if turn:
                publish(scratch, self.state)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate(directory, self._limit or self.args.save_total_limit, self.state.best_model_checkpoint)
        if self.is_local_process_zero():
            shutil.rmtree(scratch, ignore_errors=True)
