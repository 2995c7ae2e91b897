"""Train a focus adapter as a recipe says.

    python recipes/train.py --config recipes/configs/tiny_debug.yaml
    python recipes/train.py --config recipes/configs/llama2_7b_paper.yaml --dry-run
    accelerate launch --config_file recipes/accelerate/zero2.yaml recipes/train.py --config recipes/configs/llama3_8b.yaml
    accelerate launch recipes/train.py --config recipes/configs/qwen3_4b_lowrank.yaml learning_rate=1e-4 focus.r=32

A recipe is a YAML file with the sections `model`, `focus`, `data`, `training` and `run` (see `recipes/common.py` and
`FocusTrainingArguments`); whatever follows the options overrides it. A run that was interrupted goes on where its last whole
checkpoint was saved when it is started again. `--dry-run` prints what the run would be and cost, trains nothing and leaves
nothing behind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lib.recipe import Recipe, load_model, load_recipe, save_recipe
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch.utils.data import Subset
from transformers import EarlyStoppingCallback

from focus_peft import FocusConfig
from focus_peft.data import DocumentCollator, prepare
from focus_peft.hub.provenance import RECIPE_FILE
from focus_peft.tasks import PasskeyTask
from focus_peft.trainer.arguments import join_processes
from focus_peft.trainer.cost import training_cost
from focus_peft.trainer.metrics import peak_memory
from focus_peft.trainer.stopping import TrainingDiverged
from focus_peft.trainer.trainer import FocusTrainer


# Documents of each source that a dry run reads, and batches that it measures after a first one
SAMPLED, MEASURED = 64, 3


def main(recipe: Recipe) -> None:
    trainer = make_trainer(recipe)
    if trainer.is_world_process_zero():  # as it was run, overrides included: `focus-peft publish` tells others
        save_recipe(recipe, Path(str(recipe.training.output_dir)) / RECIPE_FILE)
    trainer.train(resume_from_checkpoint=recipe.run.resume)
    trainer.save_model()
    if recipe.training.push_to_hub:
        trainer.push_to_hub()


def make_trainer(recipe: Recipe) -> FocusTrainer:
    """Load the model, prepare the data, make the adapter."""
    args, run = recipe.training, recipe.run
    join_processes(args)
    model, tokenizer = load_model(recipe.model)
    data = prepare(recipe.data, tokenizer)
    torch.manual_seed(args.seed)  # low-rank twins start at random, in every process alike
    held_out: Any = data.held_out if len(data.held_out) else None
    if held_out is not None and run.eval_samples is not None and run.eval_samples < len(held_out):
        step = len(held_out) / run.eval_samples
        held_out = Subset(held_out, [int(number * step) for number in range(run.eval_samples)])
    tasks = {}
    if run.passkey_every is not None:
        args.eval_tasks_steps = run.passkey_every
        tasks["passkey"] = PasskeyTask(run.passkey_tokens, run.passkey_samples)
    adapted = get_peft_model(model, recipe.focus)
    if run.initial_adapter is not None:
        start_from(adapted, run.initial_adapter)
    return FocusTrainer(
        model=adapted,
        args=args,
        train_dataset=data.train,
        eval_dataset=held_out,
        data_collator=DocumentCollator(),
        processing_class=tokenizer,
        eval_tasks=tasks,
        callbacks=[] if run.patience is None else [EarlyStoppingCallback(run.patience)],
    )


def start_from(model: PeftModel, adapter: str) -> None:
    """Give a model's twins the weights of another adapter.

    Raises:
        ValueError: if that adapter has other twins.
    """
    given, wanted = FocusConfig.from_pretrained(adapter), cast(FocusConfig, model.peft_config["default"])
    theirs = _twins(given)
    for name, value in _twins(wanted).items():
        if value != theirs[name]:
            raise ValueError(
                f"`{name}` is {value!r}, but {theirs[name]!r} in the `initial_adapter` {adapter!r}; give it the same value."
            )
    loaded: Any = set_peft_model_state_dict(model, load_peft_weights(adapter, device="cpu"))
    if loaded.unexpected_keys:
        raise ValueError(
            f"`initial_adapter` {adapter!r} has twins that this model lacks, such as {loaded.unexpected_keys[0]!r}; it belongs to "
            "another base model."
        )


def _twins(config: FocusConfig) -> dict[str, Any]:
    """What must be the same in adapters whose weights mean the same; defaults are filled in."""
    alpha = None if config.r is None else config.scaling * config.r
    return {"r": config.r, "alpha": alpha, "target_modules": config.target_modules}


def dry_run(config: str, overrides: Sequence[str]) -> None:
    """Print what a run would be: on a few documents, in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = {"training__output_dir": folder, "training__report_to": "none", "training__push_to_hub": False}
        recipe = load_recipe(config, overrides, **fixed, data__cache_dir=folder)
        if recipe.training.max_steps > 0:  # else the number of documents decides
            few = [replace(s, max_documents=min(s.max_documents or SAMPLED, SAMPLED)) for s in recipe.data.sources]
            recipe.data = replace(recipe.data, sources=few, bands=None, held_out=0)
            recipe.training.eval_strategy = "no"
        trainer = make_trainer(recipe)
        lines = describe(trainer, recipe)
        if trainer.is_world_process_zero():
            print("\n".join(f"{name + ':':24} {value}" for name, value in lines.items()))
        if trainer.args.world_size > 1:
            trainer.accelerator.wait_for_everyone()


def describe(trainer: FocusTrainer, recipe: Recipe) -> dict[str, str]:
    """What a dry run prints."""
    args = recipe.training
    rows: Any = trainer.train_dataset
    model: Any = trainer.model
    documents = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * len(rows) / documents)
    lengths = [len(rows[index]["input_ids"]) for index in range(0, len(rows), max(1, len(rows) // SAMPLED))]
    mean = sum(lengths) / len(lengths)
    base = trainer.tuner.model
    trainable, total = model.get_nb_trainable_parameters()
    sizes = trainer.tuner.settings().sizes
    plugin = trainer.accelerator.state.deepspeed_plugin
    stage = 0 if plugin is None else int(plugin.zero_stage)
    precision: Any = "float32"
    if args.bf16 or args.fp16:
        precision = "deepspeed-bfloat16" if plugin else "bfloat16"
    cost = training_cost(
        base.config,
        recipe.focus,
        int(max(lengths)),
        batch_size=args.per_device_train_batch_size,
        precision="4bit" if recipe.model.load_in_4bit else precision,
        zero_stage=stage,
        processes=args.world_size,
        offload_optimizer=plugin is not None and plugin.offload_optimizer_device == "cpu",
        checkpointing=bool(getattr(args, "activation_checkpointing", False) or args.gradient_checkpointing),
    )
    parts = {"model": cost.frozen, "twins": cost.twins, "gradients": cost.gradients, "optimizer": cost.optimizer}
    parts |= {"cache": cost.cache, "activations": cost.activations, "reading": cost.reading}
    lines = {
        "model": f"{type(base).__name__}, {recipe.model.name_or_path or 'random weights'}, {base.dtype}",
        "trainable parameters": f"{trainable:,} of {total:,} ({'full twins' if recipe.focus.r is None else f'r={recipe.focus.r}'})",
        "windows": f"chunks of up to {sizes.chunk}, local {sizes.local}, prompt {sizes.prompt} tokens; {recipe.focus.decoding}",
        "steps": f"{steps:,} of {documents} documents ({args.world_size} processes)",
        "tokens": f"{steps * documents * mean:,.0f} (documents of {min(lengths):,} to {max(lengths):,}, {mean:,.0f} on average)",
        "memory on each device": f"{cost.device / 1e9:.2f} GB (estimate): "
        + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items()),
    }
    if cost.host:
        lines["memory in RAM"] = f"{cost.host / 1e9:.2f} GB of optimizer state"
    if trainer.tuner.reader.sharded:
        return {**lines, "time": "not measured: the weights are divided among processes"}
    seconds = measure(trainer) * args.gradient_accumulation_steps
    lines["time"] = f"{seconds:.2f} s a step here, {steps * seconds / 3600:.2f} h in all, without evaluation"
    lines["peak memory here"] = f"{peak_memory(args.device) / 1e9:.2f} GB (without optimizer)"
    return lines


def measure(trainer: FocusTrainer) -> float:
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


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the recipe, a YAML file")
    parser.add_argument(
        "--dry-run", action="store_true", help="print model, steps, tokens, memory and time; train nothing"
    )
    return parser.parse_known_args()


if __name__ == "__main__":
    options, overrides = parse_args()
    try:
        if options.dry_run:
            dry_run(options.config, overrides)
        else:
            main(load_recipe(options.config, overrides))
    except KeyboardInterrupt as interrupt:
        print(interrupt, file=sys.stderr)
        sys.exit(130)
    except TrainingDiverged as error:
        sys.exit(f"error: {error}")
