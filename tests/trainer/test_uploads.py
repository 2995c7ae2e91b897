"""What a run uploads by itself: what cannot be is told before the first step, and does not end the run later."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from peft import get_peft_model
from refusal import refusal
from runs import FOCUS, trainer_of
from transformers import TrainerCallback

from focus_peft import FocusConfig
from focus_peft.trainer.trainer import FocusTrainer


def uploading(directory: Path, **fields: Any) -> FocusTrainer:
    """A trainer that uploads each checkpoint. The repository is taken to be there."""
    trainer = trainer_of(directory, save_strategy="steps", save_steps=1, max_steps=2, **fields)
    trainer.args.push_to_hub, trainer.hub_model_id = True, "user/run"
    return trainer


@pytest.fixture
def private_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    return f"Trained on what is in {home}.\n"


def test_an_adapter_of_another_name_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = get_peft_model(make_tiny_model(dtype=torch.float32), FocusConfig(r=2, **FOCUS), adapter_name="mine")
    trainer = uploading(tmp_path, model=model)
    with refusal("`push_to_hub`", "'mine'", "`adapter_name`"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_private_card_is_refused_before_the_first_step(tmp_path: Path, private_card: str) -> None:
    (tmp_path / "README.md").write_text(private_card)
    trainer = uploading(tmp_path)
    with refusal("`README.md`", "home", "take it out"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_card_that_becomes_private_does_not_end_the_run(
    tmp_path: Path, private_card: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Write(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (tmp_path / "README.md").write_text(private_card)

    trainer = uploading(tmp_path, callbacks=[Write()])
    with caplog.at_level(logging.WARNING, "focus_peft"):
        trainer.train()
    assert trainer.state.global_step == 2 and "`README.md` would hold" in caplog.text
