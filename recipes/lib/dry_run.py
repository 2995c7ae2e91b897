"""What a training run would be, and what it would cost."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from focus_peft import FocusConfig
from focus_peft.passes.settings import WindowSizes
from focus_peft.trainer.metrics import peak_memory
from focus_peft.trainer.trainer import FocusTrainer
from lib.cost import Cost, training_cost
from lib.recipe import Recipe


# Documents whose lengths are looked at, and batches that are measured after a first one
SAMPLED, MEASURED = 64, 3


def describe(trainer: FocusTrainer, recipe: Recipe) -> dict[str, str]:
    """Model, steps, tokens, memory and time of a run, in words."""
    args, focus, base = recipe.training, recipe.focus, trainer.tuner.model
    rows: Any = trainer.train_dataset
    model: Any = trainer.model
    documents = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps
    if steps <= 0:  # the last step of an epoch may have fewer documents
        steps = math.ceil(args.num_train_epochs * math.ceil(len(rows) / documents))
    lengths = [len(rows[index]["input_ids"]) for index in range(0, len(rows), max(1, len(rows) // SAMPLED))]
    mean, longest = sum(lengths) / len(lengths), max(lengths)
    trainable, total = model.get_nb_trainable_parameters()
    sizes = trainer.tuner.settings().sizes
    half = args.bf16 or args.fp16
    cost = cost_of(base.config, recipe, longest, half, trainer.accelerator.state.deepspeed_plugin)
    twins = "full twins" if focus.r is None else f"r={focus.r}"
    lines = {
        "model": f"{type(base).__name__}, {recipe.model.name_or_path or 'random weights'}, {base.dtype}",
        "trainable parameters": f"{trainable:,} of {total:,} ({twins})",
        "windows": windows_in_words(sizes, focus),
        "steps": f"{steps:,} of {documents} documents ({args.world_size} processes)",
        "tokens": f"{steps * documents * mean:,.0f} (documents of {min(lengths):,} to {longest:,}, mean {mean:,.0f})",
        "memory on each device": costs_in_words(cost),
    }
    if cost.host:
        lines["memory in RAM"] = f"{cost.host / 1e9:.2f} GB of optimizer state"
    if trainer.tuner.reader.sharded:
        return {**lines, "time": "not measured: the weights are divided among processes"}
    seconds = seconds_of_a_batch(trainer) * args.gradient_accumulation_steps
    lines["time"] = f"{seconds:.2f} s a step here, {steps * seconds / 3600:.2f} h in all, without evaluation"
    lines["peak memory here"] = f"{peak_memory(args.device) / 1e9:.2f} GB (without optimizer)"
    return lines


def windows_in_words(sizes: WindowSizes, focus: FocusConfig) -> str:
    return f"chunks of up to {sizes.chunk}, local {sizes.local}, prompt {sizes.prompt} tokens; {focus.decoding}"


def costs_in_words(cost: Cost) -> str:
    """The memory of a step on one device."""
    parts = {"model": cost.frozen, "twins": cost.twins, "gradients": cost.gradients, "optimizer": cost.optimizer}
    parts |= {"cache": cost.cache, "activations": cost.activations, "reading": cost.reading}
    gigabytes = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    return f"{cost.device / 1e9:.2f} GB (estimate): {gigabytes}"


def cost_of(config: Any, recipe: Recipe, tokens: int, half: bool, plugin: Any = None) -> Cost:
    """The memory of a step on documents of so many tokens, in 16 bits or not, as DeepSpeed's plugin divides it."""
    args = recipe.training
    precision: Any = "float32"
    if recipe.model.load_in_4bit:
        precision = "4bit"
    elif half:
        precision = "deepspeed-bfloat16" if plugin else "bfloat16"
    return training_cost(
        config,
        recipe.focus,
        tokens,
        batch_size=args.per_device_train_batch_size,
        precision=precision,
        zero_stage=0 if plugin is None else int(plugin.zero_stage),
        processes=args.world_size,
        offload_optimizer=plugin is not None and plugin.offload_optimizer_device == "cpu",
        checkpointing=bool(getattr(args, "activation_checkpointing", False) or args.gradient_checkpointing),
    )


def seconds_of_a_batch(trainer: FocusTrainer) -> float:
    """Seconds of a micro-batch, forward and backward; no weight changes."""
    args = trainer.args
    rows: Any = trainer.train_dataset
    model: Any = trainer.model
    size = args.per_device_train_batch_size
    model.train()
    if not trainer.is_model_parallel:
        model.to(args.device)
    start = 0.0
    for number in range(MEASURED + 1):
        if number == 1:  # the first one warms up
            start = time.perf_counter()
        batch = trainer.data_collator([rows[(number * size + row) % len(rows)] for row in range(size)])
        with trainer.accelerator.autocast():
            on_device = {name: values.to(args.device) for name, values in batch.items()}
            loss = model(**on_device, distractors=trainer.distractors()).loss
        loss.backward()
        model.zero_grad()
        if args.device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / MEASURED
