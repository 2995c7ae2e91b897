"""The folders of runs: what stays in them, what moves, and which checkpoints a run can go on from."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import refusal
from runs import KillAtStep, adapter, trained, trainer_of

from focus_peft.adapter_file import WEIGHTS_FILE
from focus_peft.trainer.stopping import TrainingInterrupted
from focus_peft.trainer.trainer import FocusTrainer


SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
# the first evaluation is the best one
FIRST_IS_BEST: dict[str, Any] = {
    **SAVING,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "first_is_best",
    "eval_tasks": {"first": lambda *_: {"is_best": 1.0}},
}


def interrupted(directory: Path, **fields: Any) -> FocusTrainer:
    """A trainer that was interrupted in the second step."""
    trainer = trainer_of(directory, callbacks=[KillAtStep(1, signal.SIGTERM)], **fields)
    with pytest.raises(TrainingInterrupted, match="after step 2"):
        trainer.train()
    return trainer


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_an_interrupted_run_keeps_its_last_checkpoint_beside_the_best(tmp_path: Path) -> None:
    fields = {**FIRST_IS_BEST, "save_total_limit": 1}
    trainer = interrupted(tmp_path, **fields)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2"}
    assert trainer.args.save_total_limit == 1
    trained(tmp_path, resume="auto", **fields)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-3"}
    again = trainer_of(tmp_path, **fields)
    output = again.train(resume_from_checkpoint="auto")
    assert (output.global_step, output.training_loss) == (3, 0.0), "a finished run is not trained on"


def test_a_run_that_goes_on_from_another_folder_sets_aside_what_its_own_has(tmp_path: Path) -> None:
    trained(tmp_path / "own", **{**SAVING, "learning_rate": 1e-3}).save_model()
    before = {path.relative_to(tmp_path / "own"): path.read_bytes() for path in (tmp_path / "own").rglob(WEIGHTS_FILE)}
    interrupted(tmp_path / "other", **SAVING)
    last = tmp_path / "other" / "checkpoint-2"
    trained(tmp_path / "own", resume=str(last), **{**SAVING, "save_total_limit": 1}).save_model()
    aside = tmp_path / "own" / "_earlier-1"
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob(WEIGHTS_FILE)} == before
    assert {"checkpoint-3", "_earlier-1", WEIGHTS_FILE} <= names(tmp_path / "own")
    assert names(tmp_path / "other") == {"checkpoint-1", "checkpoint-2"}


def test_a_checkpoint_of_the_own_folder_may_have_any_path(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", **SAVING)
    (tmp_path / "last").symlink_to(tmp_path / "run" / "checkpoint-2")
    trained(tmp_path / "run", resume=str(tmp_path / "last"), **SAVING)
    assert names(tmp_path / "run") == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_the_best_checkpoint_of_a_moved_folder_is_found(move: Any, tmp_path: Path) -> None:
    interrupted(tmp_path / "before", **FIRST_IS_BEST)
    move(tmp_path / "before", tmp_path / "after")
    resumed = trained(tmp_path / "after", resume="auto", **FIRST_IS_BEST)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "after" / "checkpoint-1")
    expected = adapter(trained(tmp_path / "whole", **FIRST_IS_BEST).model)
    assert all(torch.equal(weight, expected[name]) for name, weight in adapter(resumed.model).items())


def test_a_checkpoint_without_its_optimizer_is_refused_but_for_a_finished_run(tmp_path: Path) -> None:
    fields = {**SAVING, "save_only_model": True, "lr_scheduler_type": "constant"}
    interrupted(tmp_path, **fields)
    with refusal("checkpoint-2", "`save_only_model=True`", "is_trainable=True", "`run.initial_adapter`"):
        trained(tmp_path, resume="auto", **fields)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2"}
    finished = trained(tmp_path, resume="auto", **{**fields, "max_steps": 2})
    assert finished.state.global_step == 2
