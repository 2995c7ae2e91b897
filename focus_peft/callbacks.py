"""What `FocusTrainer` does at certain moments of a run."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback

from .checkpoints import checkpoints, scratch_of


if TYPE_CHECKING:
    from .trainer import FocusTrainer

logger = logging.getLogger(__name__)


class FocusCallback(TrainerCallback):
    """Takes up where a checkpoint was saved, tells the data its epoch, runs evaluation tasks, and ends an interrupted run."""

    def __init__(self, trainer: FocusTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.is_local_process_zero():
            shutil.rmtree(scratch_of(args.output_dir), ignore_errors=True)
        if trainer._resumed_from is None and checkpoints(args.output_dir):
            logger.warning(
                "`output_dir` (%r) holds checkpoints of another run; they are counted and replaced as this run's own.",
                args.output_dir,
            )
        trainer._load_interval()
        trainer._clock.restart()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # accelerate tells the dataset in a single process only
        set_epoch = getattr(self.trainer.train_dataset, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if hasattr(Trainer, "_get_grad_norm"):
            return
        # older transformers hand the norm to nobody; gradients that were clipped to one that is no number are no numbers
        gradients = [p.grad for p in self.trainer.tuner.parameters() if p.grad is not None]
        self.trainer._check_grad_norm(float(get_total_norm(gradients)) if gradients else None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        every = getattr(args, "eval_tasks_steps", None)
        if every and state.global_step % every == 0 and trainer.eval_tasks:
            will_log = control.should_log
            trainer.log(trainer.run_eval_tasks())
            control.should_log = will_log  # a log of any kind would stand in for the step's own
        if trainer._stops:
            control.should_save = control.should_training_stop = True
