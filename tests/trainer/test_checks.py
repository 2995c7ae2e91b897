"""What cannot work is found before the first step, and says what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model, make_tiny_tokenizer
from peft import PeftModel
from refusal import refusal
from runs import FOCUS, Documents, arguments, logged, trained, trainer_of
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, TrainingArguments

from focus_peft.hub.run_options import COURSE, FREE, REFUSED
from focus_peft.tasks import PasskeyTask
from focus_peft.trainer.arguments import FocusTrainingArguments
from focus_peft.trainer.trainer import FocusTrainer


def options_of(kinds: list[type]) -> list[str]:
    return sorted({option.name for kind in kinds for option in fields(kind) if option.init})


def known_kinds() -> list[type]:
    kinds: list[type] = [TrainingArguments, FocusTrainingArguments]
    try:
        from focus_peft.sft import FocusSFTConfig
    except ImportError:
        return kinds
    return [*kinds, FocusSFTConfig]


@pytest.mark.parametrize("name", options_of(known_kinds()))
def test_every_argument_is_told_to_be_used_free_or_refused(name: str) -> None:
    """A new one must be put into one of the tables: does it decide what is trained, may it change, can it work?"""
    assert [name in table for table in (COURSE, FREE, REFUSED)].count(True) == 1


OTHERS = {
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "use_liger_kernel": True,
    "enable_jit_checkpoint": True,
    "hub_strategy": "checkpoint",
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_argument_without_effect_is_refused(name: str, tmp_path: Path) -> None:
    if name not in {option.name for option in fields(FocusTrainingArguments)}:
        pytest.skip("this release of transformers does not have it")
    with refusal(f"`{name}`", repr(OTHERS[name]), f"`{name}="):
        trainer_of(tmp_path, **{name: OTHERS[name]})


@pytest.mark.parametrize("name", ["compute_loss_func", "compute_metrics"])
def test_functions_that_cannot_work_are_refused(name: str, tmp_path: Path) -> None:
    with refusal(f"`{name}`", "leave it out"):
        FocusTrainer(model=make_focus_model(), args=arguments(tmp_path), **{name: lambda *_: 0})


def test_a_function_that_makes_models_is_refused(tmp_path: Path) -> None:
    with refusal("`model_init`", "`model`", "leave it out"):
        FocusTrainer(model_init=lambda: make_focus_model(), args=arguments(tmp_path))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps`"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size`"),
        ({"learning_rate": "abc"}, "`learning_rate`"),
        ({"learning_rate": float("nan")}, "`learning_rate`"),
        ({"distractors": 0}, "`distractors`"),
        ({"distractors": -1}, "`distractors`"),
        ({"eval_tasks_steps": True}, "`eval_tasks_steps`"),
    ],
)
def test_numbers_that_cannot_work_are_refused(given: dict[str, Any], named: str, tmp_path: Path) -> None:
    with refusal(named, repr(next(iter(given.values())))):
        arguments(tmp_path, **given)


BEST: dict[str, Any] = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
BEST |= {"load_best_model_at_end": True, "max_steps": 2}
RIGHT = {"passkey": lambda *_: {"accuracy": 1.0}}


def loaded_for_inference(folder: Path) -> PeftModel:
    make_focus_model(dtype=torch.float32, **FOCUS).save_pretrained(folder / "adapter")
    return PeftModel.from_pretrained(make_tiny_model(dtype=torch.float32), folder / "adapter")


def with_sets(trainer: FocusTrainer) -> FocusTrainer:
    trainer.eval_dataset = {"books": Documents(2), "code": Documents(3)}
    return trainer


def rows_of_text(folder: Path) -> FocusTrainer:
    trainer = trainer_of(folder)
    trainer.train_dataset = [{"text": "words"}] * 3
    return trainer


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (
            lambda folder: trainer_of(
                folder, eval_tasks={"passkey": PasskeyTask(20, 1)}, processing_class=make_tiny_tokenizer()
            ),
            ("'passkey'", "`tokens` is 20"),
        ),
        (
            lambda folder: trainer_of(folder, eval_tasks={"passkey": PasskeyTask(100, 1)}),
            ("'passkey'", "`processing_class`"),
        ),
        (lambda folder: trainer_of(folder, loaded_for_inference(folder)), ("`model`", "is_trainable=True")),
        (
            lambda folder: trainer_of(
                folder, eval_tasks=RIGHT, eval_tasks_steps=1, metric_for_best_model="eval_passkey_accuracy", **BEST
            ),
            ("`metric_for_best_model`", "'eval_passkey_accuracy'", "`eval_tasks_steps`"),
        ),
        (
            lambda folder: trainer_of(folder, metric_for_best_model="eval_accuracy", **BEST),
            ("`metric_for_best_model`", "'eval_accuracy'", "eval_loss", "eval_loss_local"),
        ),
        (
            lambda folder: trainer_of(
                folder, eval_strategy="steps", eval_steps=1, metric_for_best_model="eval_loss_choice"
            ),
            ("`metric_for_best_model`", "'eval_loss_choice'", "eval_loss_local"),
        ),
        (
            lambda folder: with_sets(trainer_of(folder, **BEST)),
            ("`metric_for_best_model`", "'loss'", "eval_books_loss", "eval_code_loss"),
        ),
        (lambda folder: trainer_of(folder, max_steps=0), ("`max_steps`", "0", "`num_train_epochs`")),
        (lambda folder: trainer_of(folder, callbacks=[EarlyStoppingCallback(2)]), ("`eval_strategy`", "'steps'")),
        (rows_of_text, ("`train_dataset`", "'text'", "`focus_peft.data.prepare`", "`FocusSFTTrainer`")),
    ],
)
def test_what_would_end_the_run_later_ends_it_before_the_first_step(
    make: Callable[[Path], FocusTrainer], named: tuple[str, ...], tmp_path: Path
) -> None:
    trainer = make(tmp_path)
    with refusal(*named):
        trainer.train()
    assert trainer.state.global_step == 0 and not list(tmp_path.glob("checkpoint-*"))


def test_a_best_metric_of_a_task_that_evaluations_run_works(tmp_path: Path) -> None:
    trainer = trained(tmp_path, eval_tasks=RIGHT, metric_for_best_model="passkey_accuracy", **BEST)
    assert trainer.state.best_metric == 1.0


@pytest.mark.parametrize("metric", ["code_loss", "eval_books_passkey_accuracy"])
def test_a_best_metric_of_one_of_several_datasets_works(metric: str, tmp_path: Path) -> None:
    trainer = with_sets(trainer_of(tmp_path, eval_tasks=RIGHT, metric_for_best_model=metric, **BEST))
    trainer.train()
    assert trainer.state.best_metric is not None


# Datasets


def test_a_dataset_of_ids_needs_neither_labels_nor_a_collator(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"input_ids": Documents(4)[index]["input_ids"]} for index in range(4)]
    trainer = FocusTrainer(
        model=make_focus_model(dtype=torch.float32, **FOCUS),
        args=arguments(tmp_path, per_device_train_batch_size=2, max_steps=2),
        train_dataset=datasets.Dataset.from_list(rows),
    )
    trainer.train()
    assert all(loss > 0 for loss in logged(trainer, "loss_continuation"))


def padded(row: dict[str, Any], left: int, right: int) -> dict[str, Any]:
    ids = row["input_ids"]
    mask = [0] * left + [1] * len(ids) + [0] * right
    return {**row, "input_ids": [0] * left + ids + [0] * right, "attention_mask": mask}


def test_padding_of_rows_is_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"input_ids": row, "sample_seed": seed} for seed, row in enumerate(Documents(6, 12, 2).rows)]
    found = []
    for number, data in enumerate([rows, [padded(row, place, 9 - place) for place, row in enumerate(rows)]]):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "focus_peft"):
            trainer = trained(tmp_path / str(number), documents=data, distractors=2)
        found.append((logged(trainer, "loss"), logged(trainer, "grad_norm"), caplog.messages))
    assert found[0] == found[1]
    assert "has 13 tokens" in caplog.text


def test_a_dataset_with_an_order_of_its_own_is_read_in_it(tmp_path: Path) -> None:
    """The order of the data is not shuffled once more: not by the seed of the training, and not in a second epoch."""
    for seed in (0, 1):
        model = make_focus_model(dtype=torch.float32, **FOCUS)
        seen: list[int] = []
        tuner = model.base_model
        tuner.register_forward_pre_hook(
            lambda _, args, given, to=seen: to.extend(given["sample_seeds"].tolist()), with_kwargs=True
        )
        trainer = trained(tmp_path / str(seed), model=model, documents=Documents(5), max_steps=7, seed=seed)
        assert seen == [0, 1, 2, 3, 4, 1000, 1001]
        assert isinstance(trainer._get_train_sampler(), SequentialSampler)


def test_columns_that_are_not_used_are_dropped_without_the_seed(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{**Documents(4)[index], "title": "a", "evidence": [[40, 5]]} for index in range(4)]
    found = []
    for seeds in (1, 2):
        for row in rows:
            row["sample_seed"] *= seeds
        args = TrainingArguments(str(tmp_path / str(seeds)), max_steps=1, use_cpu=True, report_to="none")
        trainer = FocusTrainer(
            model=make_focus_model(dtype=torch.float32, **FOCUS),
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
        )
        batch = next(iter(trainer.get_train_dataloader()))
        found.append(batch["sample_seeds"].tolist())
        assert set(batch) == {"input_ids", "attention_mask", "labels", "sample_seeds", "evidence"}
    assert found[0] != found[1]
