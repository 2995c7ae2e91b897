"""What a run that is started again does: the same one goes on to the digit, another one is refused by name."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, perturb_twins
from refusal import refusal
from runs import FOCUS, Documents, adapter, assert_same_losses, logged, losses, trained, trainer_of
from transformers import EarlyStoppingCallback, TrainerCallback

from focus_peft.hub.run_folder import last_checkpoint, occupied
from focus_peft.hub.run_identity import IDENTITY_FILE, RunIdentity
from focus_peft.trainer.identity import data_identity
from focus_peft.trainer.trainer import FocusTrainer


SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


class Die(TrainerCallback):
    """Ends the run at the end of a step, without a word to the trainer."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("killed")


def killed_after(directory: Path, step: int, **fields: Any) -> None:
    callbacks = [*fields.pop("callbacks", []), Die(step)]
    with pytest.raises(RuntimeError, match="killed"):
        trained(directory, callbacks=callbacks, **fields)


def test_a_checkpoint_may_be_named_by_a_path(tmp_path: Path) -> None:
    trainer_of(tmp_path / "run", **SAVING).train()
    with pytest.raises(ValueError, match="no whole checkpoint"):
        trainer_of(tmp_path / "run", **SAVING).train(resume_from_checkpoint=tmp_path / "run" / "checkpoint-99")
    resumed = trainer_of(tmp_path / "other", **SAVING)
    output = resumed.train(resume_from_checkpoint=tmp_path / "run" / "checkpoint-2")
    assert output.global_step == 3 and not (tmp_path / "other" / "checkpoint-1").exists()


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("best", [False, True])
def test_a_finished_run_is_not_trained_on(schedule: str, best: bool, tmp_path: Path) -> None:
    fields = {**SAVING, "lr_scheduler_type": schedule}
    if best:
        fields |= {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.5}
    first = trained(tmp_path, **fields)
    expected, names = adapter(first.model), sorted(path.name for path in tmp_path.iterdir())
    for _ in range(2):
        again = trainer_of(tmp_path, **fields)
        output = again.train(resume_from_checkpoint="auto")
        assert output.global_step == 3 and not again.is_in_train
        assert all(torch.equal(weight, expected[name]) for name, weight in adapter(again.model).items())
        assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_finished_run_of_epochs_is_not_trained_on(tmp_path: Path) -> None:
    fields = {"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2, "documents": 2}
    first = trained(tmp_path, **fields)
    again = trained(tmp_path, resume="auto", **fields)
    expected = adapter(first.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in adapter(again.model).items())


def test_a_run_with_a_constant_schedule_can_be_made_longer(tmp_path: Path) -> None:
    fields = {**SAVING, "lr_scheduler_type": "constant"}
    whole = trained(tmp_path / "whole", **{**fields, "max_steps": 5})
    trained(tmp_path / "run", **fields)
    longer = trained(tmp_path / "run", resume="auto", **{**fields, "max_steps": 5})
    assert_same_losses(longer, whole)


def test_early_stopping_goes_on_waiting_where_it_was(tmp_path: Path) -> None:
    fields = {"max_steps": 9, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    fields |= {"load_best_model_at_end": True, "learning_rate": 0.0, "save_total_limit": 2}

    def patient() -> dict[str, Any]:
        return {**fields, "callbacks": [EarlyStoppingCallback(early_stopping_patience=3)]}

    whole = trained(tmp_path / "whole", **patient())
    stopped = whole.state.global_step
    assert stopped < 9
    killed_after(tmp_path / "run", 3, **patient())
    for directory in ("run", "whole"):  # one that was killed, and one that had stopped
        again = trained(tmp_path / directory, resume="auto", **patient())
        assert again.state.global_step == stopped
    other = {**fields, "callbacks": [EarlyStoppingCallback(early_stopping_patience=4)]}
    with refusal("`EarlyStoppingCallback.early_stopping_patience`", "was 3, and is 4"):
        trained(tmp_path / "whole", resume="auto", **other)


def test_distractors_are_the_same_documents_after_a_resumed_epoch(tmp_path: Path) -> None:
    class Shuffled(Documents):
        """Other documents stand in other places in each epoch."""

        def __getitem__(self, index: int) -> dict[str, Any]:
            place = (index * (2 * self.epoch + 1) + self.epoch) % len(self)
            return {**super().__getitem__(place), "sample_seed": 1000 * self.epoch + index}

    def fields() -> dict[str, Any]:
        sizes = {"focus": {"chunk_size": 16}, "distractors": 4}  # documents have two or three chunks of their own
        return {**SAVING, **sizes, "max_steps": 8, "documents": Shuffled(5), "learning_rate": 0.05}

    plain = trained(tmp_path / "plain", **{**fields(), "distractors": None})
    whole = trained(tmp_path / "whole", **fields())
    assert losses(plain.state.log_history) != losses(whole.state.log_history)
    killed_after(tmp_path / "run", 7, **fields())  # in the second epoch
    resumed = trained(tmp_path / "run", resume="auto", **fields())
    assert_same_losses(resumed, whole)


# Another run


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "learning_rate": ({"learning_rate": 1e-2}, "was 0.003, and is 0.01"),
    "max_steps": ({"max_steps": 9}, "was 3, and is 9"),
    "seed": ({"seed": 1}, "was 0, and is 1"),
    "micro-batches of a step": ({"gradient_accumulation_steps": 2}, "was 1, and is 2"),
    "alpha": ({"focus": {"r": 2, "alpha": 9}}, "was 4.0, and is 9.0"),
    "loss": ({"focus": {"r": 2, "loss": "draw"}}, "was sum, and is draw"),
    "documents": ({"documents": 7}, "was 8, and is 7"),
    "digest": ({"documents": Documents(8, 60)}, "the training data"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_of_another_run_is_refused_and_stays(name: str, tmp_path: Path) -> None:
    fields = {**SAVING, "save_total_limit": 1, "focus": {"r": 2}}
    killed_after(tmp_path, 3, **fields)
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint == tmp_path / "checkpoint-2"
    before = (checkpoint / "adapter_model.safetensors").read_bytes()
    changed, words = CHANGES[name]
    with refusal(f"`{name}`", words, "checkpoint-2", "`output_dir`"):
        trained(tmp_path, resume="auto", **{**fields, **changed})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert (checkpoint / "adapter_model.safetensors").read_bytes() == before


def test_a_checkpoint_of_another_base_model_is_refused(tmp_path: Path) -> None:
    killed_after(tmp_path, 2, **SAVING)
    other = make_focus_model(dtype=torch.float32, base={"seed": 1}, **FOCUS)
    with refusal("`weights` of the base model"):
        trained(tmp_path, resume="auto", model=other, **SAVING)


def test_what_may_change_may_change(tmp_path: Path) -> None:
    fields = {**SAVING, "max_steps": 5}
    whole = trained(tmp_path / "whole", **fields)
    killed_after(tmp_path / "run", 4, **fields)
    free: dict[str, Any] = {"logging_steps": 1, "save_steps": 2, "save_total_limit": 1, "run_name": "another"}
    free |= {"focus": {"storage": "cpu"}, "dataloader_num_workers": 0}
    resumed = trained(tmp_path / "run", resume="auto", **{**fields, **free})
    assert_same_losses(resumed, whole)


def test_a_run_may_depend_on_more(tmp_path: Path) -> None:
    def trainer(start: str) -> FocusTrainer:
        made = trainer_of(tmp_path, **SAVING)
        made.depends_on = {"initial_adapter": start}
        return made

    trainer("a").train()
    with refusal("`initial_adapter`", "was a, and is b"):
        trainer("b").train(resume_from_checkpoint="auto")
    trainer("a").train(resume_from_checkpoint="auto")


def test_twins_that_start_at_random_are_no_difference(tmp_path: Path) -> None:
    """What a script did not seed is replaced by the checkpoint's."""
    whole = trained(tmp_path / "whole", **SAVING)
    killed_after(tmp_path / "run", 2, **SAVING)
    model = make_focus_model(dtype=torch.float32, **FOCUS)
    perturb_twins(model, seed=9)
    resumed = trained(tmp_path / "run", resume="auto", model=model, **SAVING)
    assert_same_losses(resumed, whole)


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed_after(tmp_path, 2, **SAVING)
    (tmp_path / "checkpoint-1" / IDENTITY_FILE).unlink()
    with caplog.at_level(logging.WARNING, "focus_peft"):
        trained(tmp_path, resume="auto", **SAVING)
    assert "does not say what it is of" in caplog.text
    (tmp_path / "checkpoint-3" / IDENTITY_FILE).write_text("{}")
    with refusal(IDENTITY_FILE, "cannot be read"):
        trained(tmp_path, resume="auto", **SAVING)


def test_every_thing_that_a_run_leaves_says_what_it_is_of(tmp_path: Path) -> None:
    trainer = trained(tmp_path, **SAVING)
    trainer.save_model()
    found = [RunIdentity.of(folder) for folder in (tmp_path, *tmp_path.glob("checkpoint-*"))]
    assert len(found) == 4 and all(identity == found[0] for identity in found)
    assert found[0] is not None and found[0].arguments["learning_rate"] == 3e-3
    assert not list(tmp_path.rglob("training_args.bin"))


# Data that a digest is made of


def test_the_digest_of_data_sees_another_document_and_another_order() -> None:
    def changed(change: Callable[[Documents], Any]) -> dict[str, Any]:
        rows = Documents(6)
        change(rows)
        return data_identity(rows)

    same = changed(lambda rows: rows.set_epoch(3))
    assert same == data_identity(Documents(6))
    assert changed(lambda rows: rows.rows.reverse()) != same
    assert changed(lambda rows: rows.rows[4].append(5)) != same


def test_data_that_is_drawn_anew_each_time_has_no_digest() -> None:
    class Random(Documents):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": os.urandom(8).hex()}

    assert data_identity(Random(3)) == {"documents": 3}


# Folders


def test_a_run_that_starts_anew_sets_aside_what_was_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = {**SAVING, "save_total_limit": 1, "lr_scheduler_type": "constant"}
    longer = trained(tmp_path, **{**fields, "max_steps": 5, "save_total_limit": None})
    longer.save_model()
    with caplog.at_level(logging.WARNING, "focus_peft"):
        trained(tmp_path, **fields)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3"], "the new run's"
    assert not (tmp_path / "adapter_model.safetensors").exists(), "no result before the run has ended"
    assert "_earlier-1" in caplog.text
    kept = {path.name for path in (tmp_path / "_earlier-1").iterdir()}
    assert {"checkpoint-3", "checkpoint-5", "adapter_model.safetensors", "adapter_config.json"} <= kept
    goes_on = trained(tmp_path, resume="auto", **{**fields, "max_steps": 4})
    assert logged(goes_on, "epoch")[-1] > 0 and goes_on.state.global_step == 4


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with occupied(tmp_path), refusal("`output_dir`", str(tmp_path), "runs now"):
        trained(tmp_path, **SAVING)
    trained(tmp_path, **SAVING)


def test_a_full_disk_names_the_checkpoint_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(values: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-2" in str(file):
            raise RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos 64 vs 0")
        save(values, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with refusal("checkpoint-2", "could not be written", error=OSError):
        trained(tmp_path, **SAVING)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    monkeypatch.undo()
    trained(tmp_path, resume="auto", **SAVING)
    assert json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())["global_step"] == 3
