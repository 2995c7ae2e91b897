"""What a `FocusTrainer` does between its steps: a resumed run's state, epochs, the norm of gradients, tasks."""

from __future__ import annotations

import math
from typing import Any

from torch.nn.utils import get_total_norm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..hub.run_folder import best_beside
from .checkpoints import check_complete


# Where the state of a checkpoint has what was measured since the last log
INTERVAL = "FocusTrainer"


class AlreadyFinished(Exception):
    """The checkpoint that a run was resumed from is its end."""


class FocusCallback(TrainerCallback):
    """What happens between the steps of a `FocusTrainer`.

    Args:
        trainer (`FocusTrainer`): The trainer, which adds this callback itself.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.remove_scratch()
        if trainer.resumed_from is not None:
            state.best_model_checkpoint = best_beside(trainer.resumed_from) or state.best_model_checkpoint
        stored = state.stateful_callbacks.get(INTERVAL, {}).get("attributes", {})
        if state.global_step >= state.max_steps > 0 or stored.get("ended"):
            raise AlreadyFinished
        if trainer.resumed_from is not None:
            check_complete(trainer.resumed_from)
        _restore(trainer.callback_handler.callbacks, state.stateful_callbacks)
        trainer._interval.zero_()
        trainer._losses.restart(stored.get("first_loss"), stored.get("recent_losses", ()))
        if stored and trainer.is_world_process_zero():  # they are those of all processes
            trainer._interval += trainer._interval.new_tensor(stored["sums"])
        with trainer.compute_loss_context_manager():
            trainer.distractors()  # before the data is read, which they are chosen from
        trainer.hold_limit_back()  # now that the other callbacks have logged the arguments
        trainer._clock.restart()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # accelerate tells the dataset in a single process only
        set_epoch = getattr(self.trainer.train_dataset, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.is_deepspeed_enabled:
            norm: Any = trainer.model_wrapped.get_global_grad_norm()
        else:  # gradients are clipped by now: by a norm that is not finite, to values that are not
            norm = get_total_norm([p.grad for p in trainer.tuner.parameters() if p.grad is not None])
            if hasattr(norm, "full_tensor"):  # of weights that processes share
                norm = norm.full_tensor()
        # in float16 such gradients are ordinary: the scaler skips the step
        if norm is not None and not args.fp16 and not math.isfinite(float(norm)):
            raise trainer._diverged(f"`grad_norm` is {float(norm)}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        every = getattr(args, "eval_tasks_steps", None)
        if every and state.global_step % every == 0 and trainer.eval_tasks:
            will_log = control.should_log
            trainer.log(trainer.run_eval_tasks())
            control.should_log = will_log  # a log of any kind would stand in for the step's own
        if trainer._stops:
            control.should_save = control.should_training_stop = True


def _restore(callbacks: list[TrainerCallback], states: dict[str, Any]) -> None:
    """Give callbacks the states that a checkpoint has of them: how long early stopping has waited."""
    for callback in callbacks:
        stored = states.get(type(callback).__name__)
        if isinstance(callback, ExportableState) and isinstance(stored, dict):
            for name, value in stored["attributes"].items():
                setattr(callback, name, value)
