"""What would end a run after hours, found before the first step."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback

from .metrics import MEANS


# What an evaluation measures besides the tasks, without the prefix `eval_`
LOSSES = ("loss", "loss_local", "loss_distillation", *MEANS)
SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def check_run(trainer: Any) -> None:
    """Raise a ValueError for what a `FocusTrainer` could not train, evaluate or measure with."""
    if not any(parameter.requires_grad for parameter in trainer.tuner.parameters()):
        raise ValueError(
            "`model` has an adapter that is not to be trained; load it with `PeftModel.from_pretrained(base, adapter, "
            "is_trainable=True)`."
        )
    args = trainer.args
    stops_early = any(isinstance(c, EarlyStoppingCallback) for c in trainer.callback_handler.callbacks)
    if stops_early:
        _check_patience(args)
    if stops_early or args.load_best_model_at_end:
        _check_metric(trainer)
    if args.push_to_hub:
        trainer.check_uploads()
    for name, task in trainer.eval_tasks.items():
        check = getattr(task, "check", None)
        if check is not None:
            try:
                check(trainer.model, trainer.processing_class)
            except ValueError as error:
                raise ValueError(f"The evaluation task {name!r} cannot be run: {error}") from error


def _check_patience(args: Any) -> None:
    evaluates = getattr(args.eval_strategy, "value", args.eval_strategy) != "no"
    if not evaluates or not args.metric_for_best_model:
        missing = "metric_for_best_model" if evaluates else "eval_strategy"
        raise ValueError(
            f"Early stopping waits for a better `metric_for_best_model`, but `{missing}` is "
            f"{getattr(args, missing)!r}; set it, for example to {'eval_loss' if evaluates else 'steps'!r}."
        )


def _check_metric(trainer: Any) -> None:
    """Whether an evaluation will have the metric that says which checkpoint is the best."""
    args = trainer.args
    metric = str(args.metric_for_best_model).removeprefix("eval_")
    tasks = [name for name in trainer.eval_tasks if metric.startswith(f"{name}_")]
    apart = getattr(args, "eval_tasks_steps", None) is not None
    several = isinstance(trainer.eval_dataset, dict)  # whose names stand before the metrics
    if several or metric in (*LOSSES, *SPEEDS) or tasks and not apart:
        return
    remedy = (
        "tasks that are run every `eval_tasks_steps` are no part of an evaluation; leave that out"
        if tasks
        else f"choose one of {', '.join(f'eval_{name}' for name in LOSSES)}, or what a task measures"
    )
    raise ValueError(
        f"`metric_for_best_model` is {args.metric_for_best_model!r}, which an evaluation does not measure: {remedy}."
    )
