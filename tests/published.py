"""What the tests of publishing publish: a tiny model and its adapter, with all that its card is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import perturb_twins, random_ids, save_base
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from focus_peft import FocusConfig
from focus_peft.hub import Release
from focus_peft.hub.results import Result, save_results


BASE = "user/tiny-base"
IDS = random_ids(60)[None]
FOCUS = {"r": 4, "chunk_size": 24, "local_size": 24, "prompt_size": 8}
RECIPE = """\
# the recipe's own words
model: {name_or_path: user/tiny-base, dtype: bfloat16}
focus: {r: 4, chunk_size: 24, local_size: 16}
data:
  sources:
    - {path: org/books, split: train, weight: 2.0}
    - {path: texts/*.md}
  max_tokens: 400
training: {max_steps: 20, learning_rate: 1e-3, output_dir: outputs/tiny}
"""
STATE = {
    "global_step": 10,
    "max_steps": 20,
    "log_history": [
        {"step": 5, "eval_loss": 4.0, "eval_loss_continuation": 2.5, "eval_loss_local_continuation": 2.25},
        {"step": 10, "eval_loss": 3.0, "eval_loss_continuation": 1.125, "eval_loss_local_continuation": 2.25},
        {"step": 15, "eval_loss": 1.0, "eval_loss_continuation": 0.5, "eval_loss_local_continuation": 2.25},
    ],
}
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "curves.svg", "recipe.yaml", "results.json"]
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'


def result(**fields: Any) -> Result:
    given = {"task": "passkey", "dataset": "made-up passkeys", "metric": "accuracy", "value": 0.75}
    given |= {
        "settings": {"tokens": 4096},
        "command": "python recipes/evaluate.py --task passkey",
        "machine": "2 cores",
    }
    return Result(**{**given, "versions": {"torch": "2.13.0"}, **fields})  # type: ignore[arg-type]


@dataclass
class Trained:
    """Folders and files of a trained adapter."""

    base: Path
    adapter: Path
    recipe: Path
    results: Path
    figure: Path
    notes: Path

    def options(self, **changed: Any) -> dict[str, Any]:
        """All fields of `Release`; None leaves one out."""
        given = {"license": "apache-2.0", "base_model": BASE, "config": self.recipe, "results": [self.results]}
        given |= {"figure": self.figure, "notes": self.notes, **changed}
        return {name: value for name, value in given.items() if value is not None}

    def write(
        self, output: Path, adapter: Path | None = None, overwrite: bool = False, **changed: Any
    ) -> dict[str, Path]:
        """The files of a release, of this adapter or another; `changed` as of `options`."""
        return Release(adapter or self.adapter, **self.options(**changed)).write(output, overwrite=overwrite)

    def arguments(self, *more: str) -> list[str]:
        """The same for the command."""
        given = ["--adapter", self.adapter, "--license", "apache-2.0", "--base-model", BASE, "--config", self.recipe]
        given += ["--results", self.results, "--figure", self.figure, "--notes", self.notes, *more]
        return ["publish", *map(str, given)]


def load_base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def load(trained: Trained, adapter: Path | None = None) -> Any:
    return PeftModel.from_pretrained(load_base(trained.base), str(adapter or trained.adapter)).eval()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def change_weights(adapter: Path, by: float = 1.0) -> None:
    """Let an adapter have other weights."""
    file = adapter / "adapter_model.safetensors"
    save_file({name: weight + by for name, weight in load_file(file).items()}, file, {"format": "pt"})


def make_trained(root: Path) -> Trained:
    """Save a base model, and an adapter in a folder that looks like a checkpoint."""
    save_base(root / "base", dtype=torch.float32, max_position_embeddings=256)
    model = get_peft_model(load_base(root / "base"), FocusConfig(**FOCUS))  # type: ignore[arg-type]
    perturb_twins(model)
    adapter = root / "checkpoint-10"
    model.save_pretrained(adapter)
    (adapter / "trainer_state.json").write_text(json.dumps(STATE))
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth"):
        (adapter / name).write_bytes(b"\x80\x04 not even a pickle")
    files = {"run.yaml": RECIPE, "curves.svg": SVG, "notes.md": "Made for the tests.\n"}
    for name, text in files.items():
        (root / name).write_text(text)
    baseline = result(value=0.25, subject="base model, local window alone")
    longer = result(value=0.5, settings={"tokens": 8192, "decoding": "exact"})
    save_results(
        [result(), baseline, longer, result(task="facts", metric="exact match", value=0.125)], root / "results.json"
    )
    return Trained(
        root / "base", adapter, root / "run.yaml", root / "results.json", root / "curves.svg", root / "notes.md"
    )
