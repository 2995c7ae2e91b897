"""What a run on another machine would be: from the recipe and the shapes of its base model, without its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch

from focus_peft.passes.settings import WindowSizes
from lib.cost import Counts
from lib.dry_run import cost_of, costs_in_words, windows_in_words
from lib.recipe import Recipe, load_recipe, read_recipe
from lib.shapes import shape_of


# Overrides with which the arguments of a run can be made on any machine
ANYWHERE = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None, "optim": "adamw_torch", "deepspeed": None}
# Bytes of a weight while it is loaded
LOADED = {"float32": 4, "auto": 2}


def plan(config: str, overrides: Sequence[str], fixed: Mapping[str, Any]) -> dict[str, str] | None:
    """Model, steps, tokens and memory of a run that cannot be tried here, in words, for a single process; None if it
    can.
    """
    training = read_recipe(config, overrides, **fixed).get("training") or {}
    known = {f"training__{name}": value for name, value in ANYWHERE.items()}
    recipe = load_recipe(config, overrides, **{**known, **fixed})
    args, focus, shape = recipe.training, recipe.focus, shape_of(recipe.model)
    reason = _reason(training, recipe, shape)
    if reason is None:
        return None
    counts = Counts.of(shape, focus)
    longest = max(recipe.data.limit(source) for source in recipe.data.sources)
    sizes = WindowSizes.for_model(focus, shape.max_position_embeddings)
    documents = args.per_device_train_batch_size * args.gradient_accumulation_steps
    twins = "full twins" if focus.r is None else f"r={focus.r}"
    lines = {
        "model": f"{recipe.model.name_or_path or 'random weights'}, {shape.model_type}, {counts.frozen:,} parameters",
        "trainable parameters": f"{counts.trainable:,} ({twins})",
        "windows": windows_in_words(sizes, focus),
    }
    if args.max_steps > 0:
        lines["steps"] = f"{args.max_steps:,} of {documents} documents on each process"
        lines["tokens"] = f"up to {args.max_steps * documents * longest:,} (documents of up to {longest:,})"
    half = any(training.get(name) is True for name in ("bf16", "fp16"))
    lines["memory on each device"] = costs_in_words(cost_of(shape, recipe, longest, half))
    return {**lines, "time": f"not measured: {reason}"}


def _reason(training: Mapping[str, Any], recipe: Recipe, shape: Any) -> str | None:
    """Why a run cannot be tried here; None if it can. `training` is the section as the recipe has it."""
    needs = [name for name in ("bf16", "fp16", "tf32") if training.get(name) is True]
    needs += ["load_in_4bit"] if recipe.model.load_in_4bit else []
    if needs and not training.get("use_cpu") and not torch.cuda.is_available():
        return f"`{needs[0]}` needs a GPU, and there is none here"
    if recipe.model.random is not None:
        return None
    weights = Counts.of(shape, recipe.focus).frozen * LOADED.get(recipe.model.dtype, 2)
    room = psutil.virtual_memory().available
    if weights > room and not recipe.model.load_in_4bit:
        return f"the weights take {weights / 1e9:.0f} GB, and there are {room / 1e9:.0f} GB of memory here"
    if getattr(shape, "name_or_path", "") == "":
        return "the base model is not here, and the Hub cannot be asked for it"
    return None
