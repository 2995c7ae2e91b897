"""What a `FocusTrainer` does between its steps: a resumed run's sums, epochs, the norm of gradients, tasks."""

from __future__ import annotations

import math
from typing import Any

from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from .metrics import STEPS


# Where the state of a checkpoint has what was measured since the last log
INTERVAL = "FocusTrainer"


class FocusCallback(TrainerCallback):
    """What happens between the steps of a `FocusTrainer`.

    Args:
        trainer (`FocusTrainer`): The trainer, which adds this callback itself.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.check_output_dir()
        trainer._interval.zero_()
        sums = state.stateful_callbacks.get(INTERVAL)
        if sums and trainer.is_world_process_zero():  # they are those of all processes
            trainer._interval += trainer._interval.new_tensor(sums["attributes"]["sums"])
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

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._interval[STEPS] += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        every = getattr(args, "eval_tasks_steps", None)
        if every and state.global_step % every == 0 and trainer.eval_tasks:
            will_log = control.should_log
            trainer.log(trainer.run_eval_tasks())
            control.should_log = will_log  # a log of any kind would stand in for the step's own
        if trainer._stops:
            control.should_save = control.should_training_stop = True
