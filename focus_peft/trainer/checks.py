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
    if args.max_steps == 0:  # transformers' Trainer takes a step before it looks
        raise ValueError(
            "`max_steps` is 0, so there is nothing to train; leave it out to train for `num_train_epochs`, or "
            "evaluate without `train`."
        )
    stops_early = any(isinstance(c, EarlyStoppingCallback) for c in trainer.callback_handler.callbacks)
    if stops_early:
        _check_patience(args)
    if args.metric_for_best_model and _evaluates(args):
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
    if not _evaluates(args) or not args.metric_for_best_model:
        missing = "metric_for_best_model" if _evaluates(args) else "eval_strategy"
        raise ValueError(
            f"Early stopping waits for a better `metric_for_best_model`, but `{missing}` is "
            f"{getattr(args, missing)!r}; set it, for example to {'eval_loss' if _evaluates(args) else 'steps'!r}."
        )


def _evaluates(args: Any) -> bool:
    return getattr(args.eval_strategy, "value", args.eval_strategy) != "no"


def _check_metric(trainer: Any) -> None:
    """Whether an evaluation will have the metric that says which checkpoint is the best."""
    args = trainer.args
    metric = str(args.metric_for_best_model).removeprefix("eval_")
    # the name of each of several datasets stands before what is measured on it
    given, losses = trainer.eval_dataset, _losses_of(trainer)
    sets = [f"{name}_" for name in given] if isinstance(given, dict) else [""]
    tasks = [name for name in trainer.eval_tasks if metric.startswith(tuple(f"{each}{name}_" for each in sets))]
    apart = getattr(args, "eval_tasks_steps", None) is not None
    if any(metric == each + name for each in sets for name in (*losses, *SPEEDS)) or tasks and not apart:
        return
    choice = ", ".join(f"eval_{each}{name}" for each in sets for name in losses)
    remedy = (
        "tasks that are run every `eval_tasks_steps` are no part of an evaluation; leave that out"
        if tasks
        else f"choose one of {choice}, or what a task measures"
    )
    raise ValueError(
        f"`metric_for_best_model` is {args.metric_for_best_model!r}, which an evaluation does not measure: {remedy}."
    )


def _losses_of(trainer: Any) -> list[str]:
    """Those of `LOSSES` that are measured with these arguments and this adapter."""
    config = trainer.tuner.active_config
    found = {"loss_distillation": config.distill_weight, "loss_choice": config.choice_weight}
    alone = getattr(trainer.args, "log_local_loss", True)
    return [name for name in LOSSES if found.get(name, 1) and (alone or not name.startswith("loss_local"))]
