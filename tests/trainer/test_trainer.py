"""The trainer: what it logs, what it saves, and how a run goes on after it was interrupted."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model, random_ids
from refusal import refusal
from runs import FOCUS, Documents, adapter, assert_same_losses, logged, run, trained, trainer_of
from torch import nn
from transformers import TrainerCallback

from focus_peft.data.collator import DocumentCollator
from focus_peft.hub.run_folder import last_checkpoint
from focus_peft.trainer.arguments import FocusTrainingArguments
from focus_peft.trainer.stopping import TrainingDiverged, TrainingInterrupted


class Recorder(TrainerCallback):
    """The outputs of all forward passes in training."""

    def __init__(self, model: nn.Module) -> None:
        self.outputs: list[Any] = []
        model.base_model.register_forward_hook(lambda module, _, out: module.training and self.outputs.append(out))


# What is logged


def test_both_losses_the_baseline_and_the_speed_are_logged(tmp_path: Path) -> None:
    model = make_focus_model(dtype=torch.float32, **FOCUS)
    recorder = Recorder(model)
    trainer = trained(tmp_path, model=model, logging_steps=2, gradient_accumulation_steps=2)
    for name in ("continuation", "repetition"):
        means = [getattr(output, f"loss_{name}").item() for output in recorder.outputs]
        expected = [sum(means[:4]) / 4, sum(means[4:]) / 4]  # four micro-batches between two logs
        assert logged(trainer, f"loss_{name}") == pytest.approx(expected, rel=1e-6)
    both = [a + b for a, b in zip(logged(trainer, "loss_continuation"), logged(trainer, "loss_repetition"))]
    assert logged(trainer, "loss") == pytest.approx(both, rel=1e-5)
    alone = [(o.loss_local_continuation + o.loss_local_repetition).item() / 2 for o in recorder.outputs]
    assert logged(trainer, "loss_local") == pytest.approx([sum(alone[:4]) / 4, sum(alone[4:]) / 4], rel=1e-6)
    speeds = zip(logged(trainer, "tokens_per_second"), logged(trainer, "label_tokens_per_second"))
    assert all(tokens > labels > 0 for tokens, labels in speeds)
    assert all(0.05 < memory < 100 for memory in logged(trainer, "peak_memory_gb"))


def test_the_baseline_is_the_base_model_on_the_same_labels_without_candidates() -> None:
    model = make_focus_model(label_size=4, add_bos=False)
    ids = random_ids(50)[None]
    seeds = torch.tensor([7])
    output = model(ids, labels=ids, sample_seeds=seeds, local_loss=True)
    tuner = model.base_model
    from focus_peft.losses.sampling import draw_sample, row_generators

    sample = draw_sample([True] * 50, tuner.settings(), row_generators(1, None, seeds, False)[0])
    for name, span in (("continuation", sample.continuation), ("repetition", sample.repetition)):
        window = ids[:, span.start : span.end]
        logits = make_tiny_model()(window).logits[0, span.local - 1 : -1]
        expected = nn.functional.cross_entropy(logits, window[0, span.local :])
        torch.testing.assert_close(getattr(output, f"loss_local_{name}"), expected, rtol=1e-9, atol=0)
    assert model(ids, labels=ids, sample_seeds=seeds).loss_local_continuation is None


def test_spans_depend_on_the_seed_of_the_sample_only() -> None:
    model = make_focus_model(label_size=4).train()
    rows, collate = [Documents(3)[index] for index in range(3)], DocumentCollator()
    alone = [model(**collate([row])) for row in rows]
    together = model(**collate(rows))
    mean = sum(output.loss_continuation for output in alone) / 3
    torch.testing.assert_close(together.loss_continuation, mean, rtol=1e-9, atol=0)
    backwards = model.eval()(**collate(rows[::-1]))
    torch.testing.assert_close(backwards.loss, together.loss, rtol=1e-9, atol=0)
    assert not torch.equal(alone[0].loss, model(**collate([{**rows[0], "sample_seed": 99}])).loss)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sample_seeds": torch.tensor([1, 2])}, ("`sample_seeds`", "1 rows", "(2,)")),
        ({"sample_seeds": torch.tensor([1.0])}, ("`sample_seeds`", "float32")),
        ({"sample_seeds": torch.tensor([1]), "generator": torch.Generator()}, ("`sample_seeds`", "`generator`")),
    ],
)
def test_seeds_that_cannot_be_are_refused(given: dict[str, Any], named: tuple[str, ...]) -> None:
    model = make_focus_model(label_size=4)
    ids = random_ids(50)[None]
    with refusal(*named):
        model(ids, labels=ids, **given)


def test_accumulated_micro_batches_equal_one_batch_of_all_documents(tmp_path: Path) -> None:
    fields = {"dtype": torch.float64, "max_steps": 3, "save_strategy": "no"}
    small = trainer_of(tmp_path / "a", gradient_accumulation_steps=4, **fields)
    large = trainer_of(tmp_path / "b", per_device_train_batch_size=4, **fields)
    for trainer in (small, large):
        trainer.train()
    for name in ("loss", "loss_continuation", "loss_repetition", "loss_local", "grad_norm"):
        assert logged(small, name) == pytest.approx(logged(large, name), rel=1e-6)
    expected = adapter(large.model)
    for name, weight in adapter(small.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-9)


def test_evaluation_measures_both_losses_and_the_baseline_the_same_every_time(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    first = trainer.evaluate()
    names = ["loss_continuation", "loss_repetition", "loss_local", "loss_local_continuation", "loss_local_repetition"]
    assert all(first[f"eval_{name}"] > 0 for name in names)
    assert first["eval_loss"] == pytest.approx(
        first["eval_loss_continuation"] + first["eval_loss_repetition"], rel=1e-5
    )
    again = trainer.evaluate()
    assert all(again[f"eval_{name}"] == first[f"eval_{name}"] for name in names)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss_local"] == first["eval_loss_local"]  # the base model is frozen
    assert after["eval_loss"] != first["eval_loss"]


def test_the_distillation_term_is_logged(tmp_path: Path) -> None:
    trainer = trained(tmp_path, focus={"distill_weight": 0.5}, max_steps=1)
    assert logged(trainer, "loss_distillation")[0] > 0


def test_tasks_are_run_with_each_evaluation_or_every_so_many_steps(tmp_path: Path) -> None:
    seen: list[bool] = []

    def task(model: nn.Module, tokenizer: Any) -> dict[str, float]:
        seen.append(model.training)
        torch.rand(1)
        return {"accuracy": 0.25}

    trainer = trained(tmp_path, eval_tasks={"passkey": task}, eval_strategy="steps", eval_steps=2)
    assert logged(trainer, "eval_passkey_accuracy") == [0.25, 0.25]
    assert logged(trainer, "eval_loss")
    trainer = trained(tmp_path, eval_tasks={"passkey": task}, eval_tasks_steps=1)
    assert logged(trainer, "eval_passkey_accuracy") == [0.25] * 4
    assert len(logged(trainer, "loss")) == 4
    assert not any(seen) and trainer.model.training


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert FocusTrainingArguments(output_dir=str(tmp_path), use_cpu=True).report_to == ["tensorboard"]
    trained(tmp_path, report_to="tensorboard", max_steps=1)
    assert b"loss_continuation" in next(tmp_path.rglob("events.out.*")).read_bytes()


# What is refused


def test_a_model_without_a_focus_adapter_is_refused(tmp_path: Path) -> None:
    with refusal("`model`", "LlamaForCausalLM", "get_peft_model"):
        trainer_of(tmp_path, make_tiny_model())


def test_data_that_nothing_can_be_drawn_from_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = make_focus_model(dtype=torch.float32, **FOCUS)
    recorder = Recorder(model)
    trainer = trainer_of(tmp_path, model, Documents(5, 1, 1))
    with refusal("5 documents", "`train_dataset`", "too short"):
        trainer.train()
    assert not recorder.outputs


def test_data_shorter_than_chunk_and_window_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(tmp_path, documents=Documents(5, 12, 1), max_steps=1)
    with caplog.at_level(logging.WARNING, "focus_peft"):
        trainer.train()
    assert "has 12 tokens, less than `chunk_size` (8) + `local_size` (8)" in caplog.text


# What ends a run


class Poison(TrainerCallback):
    """Makes a weight of the model NaN, or large, at the end of a step."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                next(p for p in kwargs["model"].parameters() if p.requires_grad).fill_(self.value)


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    fields = {"save_strategy": "steps", "save_steps": 1, "callbacks": [Poison(2, float("nan"))]}
    trainer = trainer_of(tmp_path, **fields)
    with refusal(
        "step 3", "`loss_continuation and loss_repetition` is nan", "checkpoint-2", "seeds [", error=TrainingDiverged
    ):
        trainer.train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    resumed = trained(tmp_path, resume=True, save_strategy="no")
    assert all(weight.isfinite().all() for weight in adapter(resumed.model).values())


def test_a_gradient_that_is_not_a_number_ends_the_run_before_the_step(tmp_path: Path) -> None:
    model = make_focus_model(dtype=torch.float32, **FOCUS)
    weight = next(p for p in model.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient * float("nan"))
    trainer = trainer_of(tmp_path, model)
    before = adapter(model)
    with refusal("step 1", "`grad_norm` is nan", "No checkpoint", error=TrainingDiverged):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in adapter(model).items())


def test_an_exploding_loss_ends_the_run(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=40, learning_rate=0.0, max_loss=0.5)
    with refusal("step 10 ", "explodes", "above 0.5", "`max_loss`", error=TrainingDiverged):
        trainer.train()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_a_checkpoint_that_the_run_goes_on_from(
    number: signal.Signals, tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole")
    from runs import KillAtStep

    before = signal.getsignal(number)
    directory = tmp_path / "interrupted"
    trainer = trainer_of(directory, callbacks=[KillAtStep(1, number)])
    with pytest.raises(KeyboardInterrupt, match="after step 2") as caught:
        trainer.train()
    assert isinstance(caught.value, TrainingInterrupted) and caught.value.code == 128 + number
    assert [path.name for path in directory.iterdir()] == ["checkpoint-2"], "no half-trained adapter as the result"
    assert last_checkpoint(directory) == directory / "checkpoint-2"
    assert signal.getsignal(number) is before
    resumed = trained(directory, resume="auto")
    assert_same_losses(resumed, whole)


# Checkpoints


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_goes_on_to_the_digit(accumulation: int, tmp_path: Path) -> None:
    fields = {"max_steps": 7, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "documents": 5}
    fields |= {"gradient_accumulation_steps": accumulation, "eval_strategy": "steps", "eval_steps": 2}
    whole = trained(tmp_path / "run", **fields)
    resumed = trained(
        tmp_path / "other", resume=str(tmp_path / "run" / "checkpoint-3"), **{**fields, "save_strategy": "no"}
    )
    assert_same_losses(resumed, whole)
    expected = adapter(whole.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in adapter(resumed.model).items())


def test_each_epoch_draws_other_spans(tmp_path: Path) -> None:
    trainer = trained(tmp_path, documents=1, max_steps=3, learning_rate=0.0)
    assert len(set(logged(trainer, "loss"))) == 3
    assert trainer.train_dataset.epoch == 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", [{"kill": [4, signal.SIGKILL.value]}, {"dies_in": "checkpoint-4"}])
def test_a_killed_run_goes_on_to_the_digit(killed: dict[str, Any], tmp_path: Path) -> None:
    args = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    whole = trained(tmp_path / "whole", **args)
    process = run(tmp_path, args=args, **killed)
    assert process.returncode == -signal.SIGKILL, process.stderr
    last = last_checkpoint(tmp_path / "run")
    assert last is not None and last.name == "checkpoint-2"
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = trained(tmp_path / "run", resume="auto", **args)
    assert_same_losses(resumed, whole)
    assert sorted(path.name for path in (tmp_path / "run").glob("*")) == ["checkpoint-6"]


def test_a_checkpoint_without_its_end_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "_saving" / "checkpoint-8").mkdir(parents=True)
    (tmp_path / "_saving" / "checkpoint-8" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "nowhere") is None
    trainer = trainer_of(tmp_path, max_steps=1)
    with refusal("`resume_from_checkpoint`", "whole checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def test_the_checkpoint_limit_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    fields = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    fields |= {"load_best_model_at_end": True, "save_total_limit": 2, "learning_rate": 0.2}
    trainer = trained(tmp_path, **fields)
    evaluated = logged(trainer, "eval_loss")
    best = 1 + evaluated.index(min(evaluated))
    names = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert names == {f"checkpoint-{best}", "checkpoint-5" if best < 5 else "checkpoint-4"}
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    saved = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == str(tmp_path / f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == min(evaluated)  # the best weights were loaded
