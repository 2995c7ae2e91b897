"""TRL's trainer with the losses of FocusLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model, make_tiny_tokenizer
from refusal import assert_sentence
from runs import adapter, logged

from focus_peft import FocusConfig


trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
from focus_peft.trainer.sft import FocusSFTTrainer  # noqa: E402


# TRL itself uses names that transformers has given up
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

BASE = {"vocab_size": 260}
WINDOWS: dict[str, Any] = {"chunk_size": 8, "local_size": 8, "prompt_size": 4, "label_size": 4}


def sft_trainer(directory: Path, rows: list[dict[str, Any]], model: Any = None, **fields: Any) -> FocusSFTTrainer:
    own = {name: fields.pop(name) for name in ("peft_config",) if name in fields}
    defaults = {
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "learning_rate": 1e-3,
        "max_length": None,
    }
    return FocusSFTTrainer(
        make_focus_model(dtype=torch.float32, base=BASE, **WINDOWS) if model is None else model,
        trl.SFTConfig(output_dir=str(directory), **{**defaults, **fields}),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=make_tiny_tokenizer(),
        **own,
    )


TEXTS = [{"text": f"Document {number} tells of the number {number * 7919}, again and again."} for number in range(6)]


def test_texts_are_trained_on_with_both_losses(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, TEXTS)
    before = adapter(trainer.model)
    trainer.train()
    assert len(logged(trainer, "loss_continuation")) == len(logged(trainer, "loss_repetition")) == 2
    assert all(value > 0 for value in logged(trainer, "loss_local"))
    total = [a + b for a, b in zip(logged(trainer, "loss_continuation"), logged(trainer, "loss_repetition"))]
    assert logged(trainer, "loss") == pytest.approx(total, rel=1e-4)
    assert any(not torch.equal(weight, before[name]) for name, weight in adapter(trainer.model).items())


def test_the_adapter_can_be_made_by_the_trainer_and_answers_alone_be_labels(tmp_path: Path) -> None:
    rows = [{"prompt": row["text"] * 2, "completion": " So be it, and no more of this."} for row in TEXTS]
    base = make_tiny_model(dtype=torch.float32, **BASE)
    trainer = sft_trainer(tmp_path, rows, base, peft_config=FocusConfig(r=2, **WINDOWS))
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"] != -100).sum() < batch["attention_mask"].sum() / 2
    trainer.train()
    assert len(logged(trainer, "loss_continuation")) == 2


@pytest.mark.parametrize("name", ["packing", "eval_packing", "padding_free"])
def test_packing_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        sft_trainer(tmp_path, TEXTS, max_length=64, **{name: True})
    assert_sentence(str(caught.value), f"`{name}`", "True", f"`{name}=False`")
