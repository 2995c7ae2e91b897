"""Training that goes on from an adapter for some minutes, by the recipe that made it, and a checkpoint in files that
are small enough to be sent.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from lib.recipe import load_recipe
from safetensors.torch import load_file, save_file
from train import make_trainer
from transformers import TrainerCallback

from focus_peft import FocusConfig

from .report import Options


RECIPE = Path(__file__).parents[2] / "configs" / "smollm2_135m_cpu_stage5.yaml"
CHECKPOINT = "checkpoint"
# The learning rate falls to zero over the last so much of the time
DECAY = 0.4
# Seconds from checkpoint to checkpoint
EVERY = 60.0


class Deadline(TrainerCallback):
    """Stops training when its time is over, lets the learning rate fall towards that, and writes checkpoints on the
    way.
    """

    def __init__(self, seconds: float, options: Options) -> None:
        self.seconds, self.options = seconds, options
        self.begin = self.saved = time.perf_counter()
        self.steps = 0
        self.rates: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin = self.saved = time.perf_counter()

    @property
    def left(self) -> float:
        """The share of the time that is left."""
        return max(0.0, 1 - (time.perf_counter() - self.begin) / self.seconds)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = args.learning_rate * min(1.0, self.left / DECAY)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.steps = state.global_step
        if time.perf_counter() - self.saved > EVERY:
            self.saved = time.perf_counter()
            save_parts(kwargs["model"], self.options)
        if self.left == 0:
            control.should_training_stop = True
        return control


def train(options: Options, base: Path, adapter: Path, seconds: float) -> dict[str, Any]:
    """Train for so many seconds, and leave the weights in `checkpoint/`."""
    config: Any = FocusConfig.from_pretrained(str(adapter))
    texts = options.texts or "${STDLIB}/*.py"
    names = ("r", "alpha", "chunk_size", "local_size", "prompt_size", "label_size", "train_min_chunk_size")
    focus = {f"focus__{name}": getattr(config, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        fixed: dict[str, Any] = {
            **focus,
            "model__name_or_path": str(base),
            "model__dtype": str(options.dtype).removeprefix("torch."),
            "data__sources__0__path": texts,
            "data__sources__1__path": texts,
            "data__cache_dir": f"{folder}/data",
            "data__held_out": 0,
            "run__initial_adapter": str(adapter),
            "run__eval_samples": None,
            "run__resume": False,
            **{f"training__{name}": value for name, value in _training(options, folder).items()},
        }
        if options.small:
            small = {"max_documents": 6, "max_tokens": 300}
            fixed |= {f"data__sources__{n}__{key}": value for n in range(3) for key, value in small.items()}
            fixed |= {"data__min_tokens": 150, "data__max_tokens": 300, "focus__train_local_size": 64}
        trainer = make_trainer(load_recipe(RECIPE, **fixed))
        deadline = Deadline(seconds, options)
        trainer.add_callback(deadline)
        trainer.train()
        files = save_parts(trainer.model, options)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        speeds = [entry["tokens_per_second"] for entry in trainer.state.log_history if "tokens_per_second" in entry]
    return {
        "training_steps": deadline.steps,
        "seconds": round(time.perf_counter() - deadline.begin, 1),
        "losses": [round(loss, 4) for loss in losses],
        "tokens_per_second": round(sum(speeds) / len(speeds), 1) if speeds else None,
        "texts": texts,
        "files": files,
    }


def _training(options: Options, folder: str) -> dict[str, Any]:
    """What differs from the recipe, which was made for a CPU and for a number of steps."""
    return {
        "output_dir": f"{folder}/run",
        "max_steps": 2 if options.small else 1_000_000,
        "lr_scheduler_type": "constant",
        "lr_scheduler_kwargs": {},
        "warmup_steps": 0,
        "learning_rate": 2e-4,
        "distractors": 2 if options.small else 96,
        "logging_steps": 1 if options.small else 25,
        "eval_strategy": "no",
        "save_strategy": "no",
        "use_cpu": options.device.type == "cpu",
        "bf16": options.device.type == "cuda",
        "report_to": "none",
        "disable_tqdm": True,
    }


def save_parts(model: Any, options: Options) -> list[str]:
    """Write an adapter into `checkpoint/`: its configuration, and its weights in bfloat16 in files of at most
    `max_part_mb`.

    `join_parts` makes a folder of it that PEFT loads.
    """
    folder = options.output / CHECKPOINT
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as whole:
        model.save_pretrained(whole)
        weights = load_file(Path(whole, "adapter_model.safetensors"))
        shutil.copy(Path(whole, "adapter_config.json"), folder / "adapter_config.json")
    save_torch_state_dict(
        {name: weight.to(torch.bfloat16) for name, weight in weights.items()},
        folder,
        filename_pattern="part{suffix}.safetensors",
        max_shard_size=f"{options.max_part_mb}MB",
    )
    return sorted(f"{CHECKPOINT}/{path.name}" for path in folder.iterdir())


def join_parts(folder: Path, target: Path) -> None:
    """Make an adapter that PEFT loads of a folder that `save_parts` wrote."""
    weights: dict[str, torch.Tensor] = {}
    for part in folder.glob("part*.safetensors"):
        weights |= load_file(part)
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "adapter_config.json", target / "adapter_config.json")
