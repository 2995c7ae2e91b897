"""Several processes log the losses and save the adapter of one process with the same batch: DDP and DeepSpeed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from typing import Any

import fsdp_worker
import pytest
import torch
from conftest import make_tiny_model
from fsdp_worker import FIELDS, LENGTHS
from runs import TINY, Documents, history, loaded, losses, run, start, trained
from safetensors.torch import load_file
from torch.utils.cpp_extension import get_default_build_root


DEEPSPEED = Path(__file__).parents[2] / "recipes" / "deepspeed"
ARGS = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}

missing = [name for name in ("g++", "ninja") if shutil.which(name) is None]
missing += [name for name in ("deepspeed",) if name not in importlib.metadata.packages_distributions()]
needs_deepspeed = pytest.mark.skipif(bool(missing), reason=f"DeepSpeed on a CPU needs {', '.join(missing)}")

# its kernel takes five minutes to compile, once
compiled = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()).rglob("cpu_adam.so")
needs_kernel = pytest.mark.skipif(
    not any(compiled) and "FOCUS_COMPILE" not in os.environ,
    reason="DeepSpeed's CPU Adam is not compiled; set FOCUS_COMPILE=1 to compile it, for five minutes, once",
)


def make_base(directory: Path) -> str:
    make_tiny_model(dtype=torch.float32, max_position_embeddings=80).save_pretrained(directory / "base")
    return str(directory / "base")


def alone(directory: Path, base: str, **fields: Any) -> tuple[dict[int, dict[str, float]], dict[str, torch.Tensor]]:
    """(losses by step, the saved adapter) of one process that accumulates two micro-batches."""
    model = loaded(base, {**FIELDS, **fields})
    trainer = trained(
        directory / "alone", model=model, documents=Documents(8, *LENGTHS), gradient_accumulation_steps=2, **ARGS
    )
    trainer.save_model(str(directory / "alone"))
    return losses(trainer.state.log_history), load_file(directory / "alone" / "adapter_model.safetensors")


def check(directory: Path, focus: dict[str, Any] | None = None, **args: Any) -> None:
    base = make_base(directory)
    expected, weights = alone(directory, base, **(focus or {}))
    fields = {"base": base, "focus": {**FIELDS, **(focus or {})}, "documents": 8, "lengths": LENGTHS}
    process = run(directory, processes=2, args={**ARGS, **args}, **fields)
    assert process.returncode == 0, process.stderr[-4000:]
    found = losses(json.loads((directory / "history.json").read_text()))
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-5), step
    fingerprint = loaded(base, FIELDS).base_model.fingerprint.to_dict()
    assert json.loads((directory / "fingerprint.json").read_text()) == fingerprint
    saved = load_file(directory / "adapter" / "adapter_model.safetensors")
    assert saved.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(saved[name], weight, rtol=0, atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "focus"),
    [
        (None, {}),
        pytest.param("zero2", {}, marks=needs_deepspeed),
        pytest.param("zero2_offload", {}, marks=[needs_deepspeed, needs_kernel]),
        pytest.param("zero3", {}, marks=needs_deepspeed),
        pytest.param("zero3", {"r": 2, "loss": "draw", "decoding": "exact"}, marks=needs_deepspeed),
    ],
)
def test_two_processes_equal_one(stage: str | None, focus: dict[str, Any], tmp_path: Path) -> None:
    check(tmp_path, focus, **({} if stage is None else {"deepspeed": str(DEEPSPEED / f"{stage}.json")}))


@pytest.mark.slow
def test_fsdp_2_has_the_gradients_of_one_process(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    process = start(Path(fsdp_worker.__file__), base, str(tmp_path / "results.pt"), processes=2)
    assert process.returncode == 0, process.stderr[-4000:]
    found = torch.load(tmp_path / "results.pt")
    model = loaded(base, FIELDS).train()
    for rank, losses_of_rank in enumerate(found["losses"]):
        for batch, wanted in zip(fsdp_worker.batches(rank), losses_of_rank):
            loss = model(**batch).loss
            assert loss.item() == pytest.approx(wanted, rel=1e-5)
            (loss / 2).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@needs_deepspeed
def test_two_processes_with_zero_2_go_on_from_the_middle(tmp_path: Path) -> None:
    words: list[Any] = [
        "recipes/train.py",
        "--config",
        TINY,
        f"cache_dir={tmp_path / 'cache'}",
        f"output_dir={tmp_path / 'run'}",
    ]
    words += ["deepspeed=recipes/deepspeed/zero2.json", "passkey_every=null", "gradient_accumulation_steps=1"]
    first = start(*words, "max_steps=10", "lr_scheduler_type=constant", processes=2)
    assert first.returncode == 0, first.stderr[-3000:]
    second = start(*words, "lr_scheduler_type=constant", processes=2)
    assert second.returncode == 0, second.stderr[-3000:]
    losses = history(tmp_path / "run")
    assert list(losses) == [5, 10, 15, 20] and all(torch.isfinite(torch.tensor(list(losses.values()))))
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-20"]
