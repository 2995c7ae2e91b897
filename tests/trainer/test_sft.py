"""TRL's trainer with the losses of FocusLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model, make_tiny_tokenizer
from peft import LoraConfig
from refusal import refusal
from runs import adapter, logged

from focus_peft import FocusConfig


trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
from focus_peft.sft import FocusSFTConfig, FocusSFTTrainer  # noqa: E402
from focus_peft.trainer.stopping import TrainingDiverged  # noqa: E402


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
    config = fields.pop("config", trl.SFTConfig)
    return FocusSFTTrainer(
        make_focus_model(dtype=torch.float32, base=BASE, **WINDOWS) if model is None else model,
        config(output_dir=str(directory), **{**defaults, **fields}),
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


def test_a_configuration_of_another_adapter_is_refused_by_name(tmp_path: Path) -> None:
    with refusal("`peft_config`", "LoraConfig", "`FocusConfig`"):
        sft_trainer(tmp_path, TEXTS, make_tiny_model(dtype=torch.float32, **BASE), peft_config=LoraConfig())


@pytest.mark.parametrize("name", ["packing", "eval_packing", "padding_free"])
def test_packing_is_refused(name: str, tmp_path: Path) -> None:
    with refusal(f"`{name}`", "True", f"`{name}=False`"):
        sft_trainer(tmp_path, TEXTS, max_length=64, **{name: True})


def rows_of(kind: str) -> Any:
    texts = (
        TEXTS if kind == "SFT" else [{"prompt": row["text"], "chosen": " Yes.", "rejected": " No."} for row in TEXTS]
    )
    return datasets.Dataset.from_list(texts)


@pytest.mark.parametrize("how", ["a model", "a configuration"])
@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO"])
def test_other_trainers_of_trl_name_the_one_that_works(kind: str, how: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    options: dict[str, Any] = {}
    if kind == "GRPO":
        fields |= {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 4}
        options["reward_funcs"] = lambda completions, **kwargs: [float(len(text)) for text in completions]
    if how == "a configuration":
        options["peft_config"] = FocusConfig(r=2, **WINDOWS)
    trainer = getattr(trl, f"{kind}Trainer")(
        make_tiny_model(dtype=torch.float32, **BASE)
        if how == "a configuration"
        else make_focus_model(dtype=torch.float32, base=BASE, **WINDOWS),
        args=getattr(trl, f"{kind}Config")(output_dir=str(tmp_path), **fields),
        train_dataset=rows_of(kind),
        processing_class=make_tiny_tokenizer(),
        **options,
    )
    with refusal("`FocusSFTTrainer`", "`labels`"):
        trainer.train()


@pytest.mark.parametrize(
    "fields", [{"label_smoothing_factor": 0.1}, {"neftune_noise_alpha": 5.0}, {"loss_type": "dft"}], ids=str
)
def test_another_loss_is_refused_before_documents_are_tokenized(fields: dict[str, Any], tmp_path: Path) -> None:
    ((name, value),) = fields.items()
    with refusal(f"`{name}`", str(value), "leave it out"):
        sft_trainer(tmp_path, [{"nothing": 1}], **fields)


def test_tokens_that_a_chat_template_adds_cannot_be_trained(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "template")
    base = make_tiny_model(dtype=torch.float32, **BASE)
    with refusal("`trainable_token_indices`", "`FocusConfig`", error=AttributeError):
        config = FocusConfig(r=2, **WINDOWS)
        sft_trainer(tmp_path, TEXTS, base, peft_config=config, chat_template_path=str(tmp_path / "template"))


def test_its_own_arguments_have_what_the_trainer_can_do_besides(tmp_path: Path) -> None:
    many = TEXTS * 5  # more than a document has chunks
    trainer = sft_trainer(tmp_path / "a", many, config=FocusSFTConfig, distractors=30, log_local_loss=False)
    trainer.train()
    assert len(trainer.distractors()) == 30 and not logged(trainer, "loss_local")
    assert trainer.args.learning_rate == 1e-3 and trainer.args.max_length is None
    assert FocusSFTConfig(str(tmp_path), use_cpu=True, bf16=False).max_length is None, "nothing is cut off"
    assert logged(trainer, "loss") != logged(_trained(sft_trainer(tmp_path / "b", many)), "loss")
    stopped = sft_trainer(tmp_path / "c", TEXTS, config=FocusSFTConfig, max_loss=0.1, max_steps=12)
    with pytest.raises(TrainingDiverged, match="`max_loss`"):
        stopped.train()


def test_conversations_are_trained_on(tmp_path: Path) -> None:
    def said(number: int) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": f"{number}: {TEXTS[number]['text']}"},
            {"role": "assistant", "content": f"It tells of the number {number * 7919}."},
        ]

    trainer = sft_trainer(tmp_path, [{"messages": said(number)} for number in range(6)])
    trainer.train()
    assert all(value > 0 for value in logged(trainer, "loss_continuation"))


def test_an_evaluation_gives_losses_alone(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, TEXTS)
    found = trainer.evaluate(trainer.train_dataset)
    assert found["eval_loss"] == pytest.approx(
        found["eval_loss_continuation"] + found["eval_loss_repetition"], rel=1e-4
    )


def _trained(trainer: FocusSFTTrainer) -> FocusSFTTrainer:
    trainer.train()
    return trainer
