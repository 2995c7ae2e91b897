"""Means are over the same labels, whatever the batches are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model
from runs import FOCUS, Documents, arguments, logged, trained, trainer_of
from torch import nn

from focus_peft.data.collator import DocumentCollator
from focus_peft.trainer.measuring import _seed_of
from focus_peft.trainer.trainer import FocusTrainer


EVALUATED = ("loss", "loss_continuation", "loss_repetition", "loss_local")


class Uneven(Documents):
    """Documents with few labels, many, and none."""

    def __init__(self, count: int, seeded: bool = True) -> None:
        super().__init__(count)
        self.seeded = seeded

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        first = (0, 40, len(row["labels"]) - 2, len(row["labels"]))[index % 4]
        row["labels"] = [-100] * first + row["labels"][first:]
        if not self.seeded:
            del row["sample_seed"]
        return row


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Seeds have the name of their column, as transformers' own collators leave it."""
    return {name.replace("seeds", "seed"): tensor for name, tensor in DocumentCollator()(rows).items()}


@pytest.mark.parametrize("seeded", [True, False], ids=["seeds", "no seeds"])
@pytest.mark.parametrize("focus", [{}, {"distill_weight": 0.5}, {"loss": "draw"}], ids=["sum", "distilled", "draw"])
def test_evaluation_does_not_depend_on_the_size_of_its_batches(
    focus: dict[str, Any], seeded: bool, tmp_path: Path
) -> None:
    model = make_focus_model(**FOCUS, **focus)
    rows = Uneven(7, seeded)
    found = []
    for size in (1, 2, 7):
        trainer = FocusTrainer(
            model=model,
            args=arguments(tmp_path, per_device_eval_batch_size=size),
            eval_dataset=rows,
            data_collator=collate,
        )
        metrics = trainer.evaluate()
        found.append([metrics[f"eval_{name}"] for name in EVALUATED])
    assert found[1] == pytest.approx(found[0], rel=1e-9) and found[2] == pytest.approx(found[0], rel=1e-9)
    # the right value: the mean over the documents that have labels, one by one
    losses = []
    with torch.no_grad():
        for index in range(7):
            batch = collate([rows[index]])
            given = batch.pop("sample_seed", None)
            seeds = _seed_of(batch) if given is None else given
            output = model(**batch, sample_seeds=seeds)
            if output.num_continuation + output.num_repetition > 0:
                losses.append(output.loss.item())
    assert len(losses) < 7
    assert found[0][0] == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_the_baseline_is_measured_on_the_labels_of_the_losses_beside_it(tmp_path: Path) -> None:
    """What is logged every four steps is the mean of what each step gave; the learning rate is 0."""
    every, fourth = (
        trainer_of(tmp_path / str(steps), logging_steps=steps, learning_rate=0.0, max_steps=8) for steps in (1, 4)
    )
    for trainer in (every, fourth):
        trainer.train()
    for name in ("loss", "loss_continuation", "loss_local_continuation", "loss_local_repetition"):
        single = logged(every, name)
        means = [sum(single[:4]) / 4, sum(single[4:]) / 4]
        assert logged(fourth, name) == pytest.approx(means, rel=1e-6)


def test_a_micro_batch_without_labels_is_no_loss_of_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Half(Documents):
        def __getitem__(self, index: int) -> dict[str, Any]:
            row = super().__getitem__(index)
            return {**row, "labels": [-100] * len(row["labels"])} if index % 2 else row

    fields: dict[str, Any] = {"documents": Half(8), "learning_rate": 0.0, "max_steps": 2}
    fields["gradient_accumulation_steps"] = 4
    model = make_focus_model(dtype=torch.float32, **FOCUS)
    seen: list[tuple[int, float]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            seen.append((int(output.num_continuation), output.loss.item()))

    model.base_model.register_forward_hook(note)
    with caplog.at_level(logging.WARNING, "focus_peft"):
        trainer = trained(tmp_path, model=model, logging_steps=2, **fields)
    assert "4 of 8 documents" in caplog.text and "no room for a span" in caplog.text
    labelled = [loss for labels, loss in seen if labels]
    assert len(labelled) == 4 and len(seen) == 8
    assert logged(trainer, "loss") == pytest.approx([sum(labelled) / 4], rel=1e-6)
