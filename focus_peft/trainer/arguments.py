"""`FocusTrainingArguments`: transformers' `TrainingArguments` and what `FocusTrainer` adds to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled, is_tensorboard_available

from ..fields import SIZE, WEIGHT


# Arguments that count something that there must be one of; some may be None
POSITIVE = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("eval_tasks_steps", "distractors"),
)


@dataclass
class FocusArguments:
    """What `FocusTrainer` adds to the arguments of another trainer; see [`FocusTrainingArguments`]."""

    report_to: None | str | list[str] = field(
        default=None, metadata={"help": "Where to log. Defaults to tensorboard, where it is installed."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Replace losses that are not finite."})
    log_local_loss: bool = field(default=True, metadata={"help": "Measure the loss of the local window alone too."})
    eval_tasks_steps: int | None = field(
        default=None,
        metadata={"help": "Run the evaluation tasks every so many steps. By default, with each evaluation."},
    )
    distractors: int | None = field(
        default=None, metadata={"help": "Chunks of other documents that may stand among a document's own."}
    )
    max_loss: float | None = field(
        default=None, metadata={"help": "Stop when the mean loss of ten batches is higher. 0: never."}
    )

    def __post_init__(self) -> None:
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        super().__post_init__()  # type: ignore[misc]
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None:
                SIZE.check(f"`{name}`", value)
        WEIGHT.check("`learning_rate`", getattr(self, "learning_rate"))  # noqa: B009 - of the class it is mixed into
        if self.max_loss is not None and not self.max_loss >= 0:
            raise ValueError(f"`max_loss` must be a number, 0 or above, or None, got {self.max_loss}.")


@dataclass
class FocusTrainingArguments(FocusArguments, TrainingArguments):
    """
    Arguments of [`FocusTrainer`]: all of transformers' `TrainingArguments`, with three other defaults and these.

    Parameters that control what is logged:
        report_to (`str` or `list[str]`, *optional*):
            "tensorboard", "wandb", "trackio", ..., or "none". Defaults to "tensorboard" where it is installed.
        log_local_loss (`bool`): Measure the loss of the local window alone too, on the same labels. It costs one
            more pass over each local window, without a gradient. Defaults to True.
        eval_tasks_steps (`int`, *optional*): Run the trainer's `eval_tasks` every so many steps. By default, with each
            evaluation.

    Parameters that control what is trained on:
        distractors (`int`, *optional*):
            So many chunks of training documents are read before the first step, and up to so many stand among those of
            every document from then on (see [`Distractors`]). They take as much memory as an encoded input of as many
            chunks. Not in evaluation. Defaults to none.

    Parameters that control when a run ends early:
        max_loss (`float`, *optional*):
            The mean loss of the last ten batches must not be higher. 0: it may. Defaults to three times the first
            loss, or the loss of guessing uniformly, whichever is higher.
        logging_nan_inf_filter (`bool`): False here: a loss that is not finite ends the run, and is never replaced by
            another.

    Raises:
        ValueError: if a value cannot work.

    Example:

    ```python
    from focus_peft.training_args import FocusTrainingArguments

    args = FocusTrainingArguments(output_dir="outputs/mine", max_steps=1000, learning_rate=1e-3, distractors=48)
    ```
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns that the model does not take."})


def join_processes(args: TrainingArguments) -> None:
    """Make the processes of a run known to each other. Call it before a model is loaded.

    ZeRO-3 divides a model's weights while it is loaded. transformers joins the processes when a device is first asked
    for, and on CPUs does so without DeepSpeed's knowledge.
    """
    _ = args.device
    if is_deepspeed_zero3_enabled() and args.world_size > 1:
        from deepspeed.comm import init_distributed

        init_distributed(auto_mpi_discovery=False)
