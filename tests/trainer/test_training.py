"""The loss behaves as training code expects: checkpointing, precision, the Trainer, several processes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import ddp_worker
import pytest
import torch
from conftest import each_decoding, make_focus_model
from fresh import run_apart
from peft import PeftModel
from refusal import refusal
from runs import Documents, arguments, logged
from torch import nn
from training import (
    Gradients,
    assert_equal_to,
    assert_same_gradients,
    batch_of,
    combined,
    document,
    gradients,
    gradients_of,
    seeded,
)
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from focus_peft.data.collator import DocumentCollator


def test_gradients_of_two_batches_accumulate() -> None:
    model = make_focus_model(label_size=4).train()
    batches = [batch_of([document(50, seed)]) for seed in (1, 2)]
    alone = []
    for seed, batch in enumerate(batches):
        alone.append(gradients_of(model, model(batch, labels=batch, generator=seeded(seed)).loss))
    model.zero_grad(set_to_none=True)
    for seed, batch in enumerate(batches):
        model(batch, labels=batch, generator=seeded(seed)).loss.backward()
    summed = combined(alone)
    assert_same_gradients(gradients(model), summed)
    model.zero_grad(set_to_none=True)
    total = sum(model(batch, labels=batch, generator=seeded(seed)).loss for seed, batch in enumerate(batches))
    total.backward()  # two graphs at once
    assert_same_gradients(gradients(model), summed)


def checkpoint_activations(model: PeftModel, reentrant: bool | None = None) -> None:
    """Turn gradient checkpointing on, by the name that it has in this release of transformers."""
    name = (
        "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    )
    kwargs = None if reentrant is None else {"use_reentrant": reentrant}
    getattr(model, f"{name}_enable")(**{f"{name}_kwargs": kwargs})


def count_passes(model: PeftModel) -> list[bool]:
    """A list that grows with every pass through the first layer's MLP: whether it made a graph."""
    layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    passes: list[bool] = []
    layer.mlp.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    return passes


@each_decoding
@pytest.mark.parametrize(
    ("family", "r", "reentrant"),
    [
        ("llama", None, False),
        ("llama", 2, True),
        ("gpt2", None, True),
        ("gemma3", None, None),
    ],
)
def test_gradient_checkpointing_changes_nothing(
    family: str, r: int | None, reentrant: bool | None, decoding: str
) -> None:
    model = make_focus_model(family, decoding=decoding, r=r, label_size=4, distill_weight=0.5).train()
    ids = batch_of([document(50), document(50, seed=1)])
    passes = count_passes(model)
    expected = model(ids, labels=ids, generator=seeded(0)).loss
    wanted = gradients_of(model, expected)
    with_graph = sum(passes)
    passes.clear()
    checkpoint_activations(model, reentrant)
    output = model(ids, labels=ids, generator=seeded(0))
    assert torch.equal(output.loss, expected)
    assert_same_gradients(gradients_of(model, output.loss), wanted, 1e-12)
    assert sum(passes) == 2 * with_graph  # the layer really ran twice
    assert model.training and not any(module.training for module in model.get_base_model().modules())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.*able:FutureWarning")
def test_gradient_checkpointing_is_switched_by_its_old_name_too() -> None:
    model = make_focus_model(label_size=4).train()
    ids = batch_of([document(50)])
    passes = count_passes(model)
    wanted = gradients_of(model, model(ids, labels=ids, generator=seeded(0)).loss)
    counts = [sum(passes)]
    for switch in (model.gradient_checkpointing_enable, model.gradient_checkpointing_disable):
        switch()
        passes.clear()
        loss = model(ids, labels=ids, generator=seeded(0)).loss
        assert_same_gradients(gradients_of(model, loss), wanted, 1e-12)
        counts.append(sum(passes))
    assert counts == [counts[0], 2 * counts[0], counts[0]]


def test_gradient_checkpointing_survives_other_passes_before_the_backward_pass() -> None:
    model = make_focus_model(label_size=4).train()
    ids = batch_of([document(50)])
    wanted = gradients_of(model, model(ids, labels=ids, generator=seeded(0)).loss)
    checkpoint_activations(model)
    loss = model(ids, labels=ids, generator=seeded(0)).loss
    with torch.no_grad():
        model.encode(ids)
        model(ids, labels=ids, generator=seeded(1))
        model(ids)
    model(ids, labels=ids, generator=seeded(2)).loss.backward()
    assert_same_gradients(gradients_of(model, loss), wanted, 1e-12)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_autocast_trains(family: str, checkpointing: bool) -> None:
    model = make_focus_model(family, torch.float32, label_size=4, distill_weight=0.5).train()
    ids = batch_of([document(50), document(50, seed=1)])
    if checkpointing:
        checkpoint_activations(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids, generator=seeded(0)).loss  # the first use of the model
    full = model(ids, labels=ids, generator=seeded(0)).loss
    assert abs(loss.item() - full.item()) < 0.2 * full.item()
    assert loss.dtype == torch.float32
    found = [gradient for gradient in gradients_of(model, loss).values() if gradient is not None]
    assert found and all(gradient.isfinite().all() for gradient in found)
    assert any(gradient.any() for gradient in found)


@pytest.mark.parametrize(
    ("family", "dtype", "r", "decoding"),
    [
        ("llama", torch.bfloat16, None, "streaming"),
        ("llama", torch.float16, 2, "exact"),
        ("llama", torch.float16, None, "streaming"),
        ("gpt2", torch.bfloat16, 2, "streaming"),
        ("gpt2", torch.float16, None, "exact"),
    ],
)
def test_half_precision_base_models_train(family: str, dtype: torch.dtype, r: int | None, decoding: str) -> None:
    model = make_focus_model(family, dtype, label_size=4, r=r, decoding=decoding, distill_weight=0.5).train()
    ids = batch_of([document(50), document(50, seed=1)])
    output = model(ids, labels=ids, generator=seeded(0))
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    found = gradients_of(model, output.loss)
    present = [gradient for gradient in found.values() if gradient is not None]
    assert present and all(gradient.isfinite().all() for gradient in present)
    assert any(gradient.any() for gradient in present)
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if ".focus_" in n)  # PEFT's habit

    exactly = make_focus_model(family, torch.float64, label_size=4, r=r, decoding=decoding, distill_weight=0.5)
    expected = exactly(ids, labels=ids, generator=seeded(0))
    assert abs(output.loss.item() - expected.loss.item()) < 0.25 * expected.loss.item()


def test_a_copy_of_the_model_trains_like_the_model() -> None:
    model = make_focus_model(label_size=4).train()
    ids = batch_of([document(50)])
    wanted = gradients_of(model, model(ids, labels=ids, generator=seeded(0)).loss)
    other = copy.deepcopy(model)
    loss = other(ids, labels=ids, generator=seeded(0)).loss
    assert_same_gradients(gradients_of(other, loss), wanted)


@pytest.mark.usefixtures("distributed")
@pytest.mark.parametrize(("option", "value"), [("storage", "disk"), ("spread_chunks", True), ("read_chunks", 2)])
def test_training_reads_by_itself_whatever_is_configured(option: str, value: Any) -> None:
    ids = batch_of([document(60)])
    configured, model = make_focus_model(label_size=4, **{option: value}), make_focus_model(label_size=4)
    assert torch.equal(*(each(ids, labels=ids, generator=seeded(3)).loss for each in (configured, model)))
    with refusal(f"`{option}`", repr(value), "`labels`", model=model):
        model(ids, labels=ids, **{option: value})


# transformers' Trainer


def plain(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch for transformers' own trainer, which knows of no seeds of samples."""
    return {name: tensor for name, tensor in DocumentCollator()(rows).items() if name != "sample_seeds"}


class Monotonous(Documents):
    """Documents that are all made of the same three tokens."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = [10 + token % 3 for token in self.rows[index]]
        return {**super().__getitem__(index), "input_ids": row, "labels": row}


class Recorder(TrainerCallback):
    """Every forward pass in training: what it was given, the state of the global seed before it, and its loss."""

    def __init__(self, model: PeftModel) -> None:
        self.calls: list[tuple[torch.Tensor, dict[str, Any], float]] = []
        self.states: list[torch.Tensor] = []
        tuner = model.base_model
        tuner.register_forward_pre_hook(lambda *_: self.states.append(torch.get_rng_state()))
        tuner.register_forward_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if module.training:
            names = ("input_ids", "attention_mask", "labels")
            self.calls.append((self.states[-1], {name: kwargs[name] for name in names}, output.loss.item()))

    @property
    def losses(self) -> list[float]:
        return [loss for _, _, loss in self.calls]


def trainer_of(model: PeftModel, directory: Path, documents: int | Documents = 8, **fields: Any) -> Trainer:
    data = Documents(documents, 60) if isinstance(documents, int) else documents
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "max_steps": -1}
    args = arguments(directory, kind=TrainingArguments, remove_unused_columns=False, **{**sizes, **fields})
    return Trainer(model=model, args=args, train_dataset=data, eval_dataset=data, data_collator=plain)


def test_the_trainer_brings_the_loss_down_and_evaluates(tmp_path: Path) -> None:
    model = make_focus_model(dtype=torch.float32, label_size=8)
    trainer = trainer_of(model, tmp_path, Monotonous(4, 60), max_steps=16, learning_rate=1e-2)
    before = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == before
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if ".focus_" not in name}
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before
    losses = logged(trainer, "loss")
    assert len(losses) == 16
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_evaluation_averages_over_batches(tmp_path: Path) -> None:
    model = make_focus_model(label_size=4).eval()
    trainer = trainer_of(model, tmp_path, documents=6)
    rows = [trainer.eval_dataset[number] for number in range(6)]
    losses = [model(**plain(rows[start : start + 3])).loss.item() for start in (0, 3)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)


def test_the_trainer_can_predict_and_compute_metrics(tmp_path: Path) -> None:
    model = make_focus_model(label_size=4)
    trainer = trainer_of(model, tmp_path, documents=6)
    seen = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"batches": 2.0}

    trainer.compute_metrics = compute_metrics
    metrics = trainer.evaluate()
    assert metrics["eval_batches"] == 2.0 and metrics["eval_loss"] > 0
    assert len(seen) == 1


@pytest.mark.parametrize("loss", ["sum", "draw"])
def test_the_trainer_logs_the_mean_of_accumulated_losses_and_steps_along_the_mean_gradient(
    loss: str, tmp_path: Path
) -> None:
    model = make_focus_model(label_size=4, loss=loss)
    recorder = Recorder(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = trainer_of(
        model,
        tmp_path,
        gradient_accumulation_steps=2,
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    trainer.train()
    assert len(recorder.losses) == 4
    means = [sum(recorder.losses[:2]) / 2, sum(recorder.losses[2:]) / 2]
    assert logged(trainer, "loss") == pytest.approx(means, rel=1e-4)

    # the same two steps by hand
    other = make_focus_model(label_size=4, loss=loss).train()
    parameters = {name: p for name, p in other.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, start[name]) for name, p in parameters.items())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    calls = list(recorder.calls)
    for pair in (calls[:2], calls[2:]):
        for state, inputs, expected in pair:
            torch.set_rng_state(state)
            output = other(**inputs)
            assert_equal_to(output.loss, expected)
            (output.loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = dict(model.named_parameters())
    for name, parameter in parameters.items():
        torch.testing.assert_close(trained[name], parameter, rtol=0, atol=1e-12)


def test_the_trainer_trains_in_bfloat16(tmp_path: Path) -> None:
    model = make_focus_model(dtype=torch.float32, label_size=4)
    trainer = trainer_of(model, tmp_path, max_steps=2, bf16=True)
    trainer.train()
    assert all(0 < loss < 100 for loss in logged(trainer, "loss"))
    assert all(0 < norm < 1000 for norm in logged(trainer, "grad_norm"))


def test_the_trainer_checkpoints_activations(tmp_path: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        model = make_focus_model(label_size=4)
        name = "activation_checkpointing"
        if name not in TrainingArguments.__dataclass_fields__:  # its name before transformers 5.20 or so
            name = "gradient_checkpointing"
        recorder = Recorder(model)
        passes = count_passes(model)
        trainer_of(model, tmp_path, max_steps=2, **{name: checkpointing}).train()
        losses.append(recorder.losses)
        assert sum(passes) == (2 if checkpointing else 1) * 2 * 2 * 3  # steps, rows, and passes with a graph
    assert losses[0] == losses[1]


def test_the_trainer_saves_and_resumes(tmp_path: Path) -> None:
    whole = trainer_of(make_focus_model(label_size=4), tmp_path / "whole", max_steps=4)
    whole.train()
    half = trainer_of(
        make_focus_model(label_size=4), tmp_path / "half", max_steps=4, save_strategy="steps", save_steps=2
    )
    half.train()
    resumed = trainer_of(make_focus_model(label_size=4), tmp_path / "resumed", max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    assert logged(resumed, "loss")[2:] == pytest.approx(logged(whole, "loss")[2:], rel=1e-6)
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-6)


# Several processes


def run_processes(directory: Path) -> list[dict[str, Any]]:
    """What each of two processes ends up with, in every scenario."""
    calls = [(rank, ddp_worker.PROCESSES, directory / "store", directory) for rank in range(ddp_worker.PROCESSES)]
    for code, printed in run_apart(ddp_worker.main, calls, directory):
        assert code == 0, printed
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(ddp_worker.PROCESSES)]


def check_scenario(scenario: ddp_worker.Scenario, results: list[dict[str, Any]]) -> None:
    """Every process has the mean of the gradients that one process computes for each, and the same weights."""
    alone: list[Gradients] = []
    for rank, result in enumerate(results):
        model = scenario.model()
        for batch, counts in zip(scenario.inputs(rank), result["counts"]):
            output = model(**batch)
            output.loss.backward()
            assert counts == (output.num_continuation.item(), output.num_repetition.item())
        assert_equal_to(result["loss"], output.loss)
        alone.append(gradients(model))
    expected = combined(alone, weight=1 / len(results))
    for result in results:
        assert_same_gradients(result["gradients"], expected, none_is_zero=True)
    first, *others = (result["weights"] for result in results)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_two_processes_end_up_with_the_mean_gradient(tmp_path: Path) -> None:
    processes = run_processes(tmp_path)
    wrong = {}
    for name, scenario in ddp_worker.SCENARIOS.items():
        try:
            check_scenario(scenario, [process[name] for process in processes])
        except AssertionError as error:
            wrong[name] = error
    assert not wrong
    counts = {name: [process[name]["counts"][-1] for process in processes] for name in ddp_worker.SCENARIOS}
    assert counts["a half for each"] == [(4, 4), (4, 4)]
    assert counts["one has no labels"] == [(4, 4), (0, 0)]
    assert counts["nobody has labels"] == [(0, 0), (0, 0)]
    assert counts["each draws another loss"] == [(4, 0), (0, 4)]
