"""Train a focus adapter as a recipe says.

    python recipes/train.py --config recipes/configs/tiny_debug.yaml
    python recipes/train.py --config recipes/configs/llama2_7b_paper.yaml --dry-run
    accelerate launch --config_file recipes/accelerate/zero2.yaml recipes/train.py \\
        --config recipes/configs/llama3_8b.yaml
    accelerate launch recipes/train.py --config recipes/configs/qwen3_4b_lowrank.yaml learning_rate=1e-4 focus.r=32

A recipe is a YAML file with the sections `model`, `focus`, `data`, `training` and `run` (see `recipes/lib/recipe.py`
and `FocusTrainingArguments`); whatever follows the options overrides it. A run that was interrupted goes on where its
last whole checkpoint was saved when it is started again. `--dry-run` prints what the run would be and cost, trains
nothing and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lib.base_model import load_model
from lib.command_line import parser_of, sentences
from lib.dry_run import SAMPLED, describe
from lib.plan import plan
from lib.recipe import Recipe, load_recipe, save_recipe
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch.utils.data import Subset
from transformers import EarlyStoppingCallback, TrainerCallback

from focus_peft import FocusConfig
from focus_peft.data import DocumentCollator, prepare
from focus_peft.hub.run_folder import RECIPE_FILE
from focus_peft.tasks import PasskeyTask
from focus_peft.trainer.arguments import join_processes
from focus_peft.trainer.stopping import TrainingDiverged, TrainingInterrupted
from focus_peft.trainer.trainer import FocusTrainer


def main(recipe: Recipe) -> None:
    trainer = make_trainer(recipe)
    trainer.add_callback(KeptRecipe(recipe))
    trainer.train(resume_from_checkpoint=recipe.run.resume)
    trainer.save_model()
    if recipe.training.push_to_hub:
        trainer.push_to_hub()


class KeptRecipe(TrainerCallback):
    """Writes the recipe as it is run, overrides included, when the run begins: `focus-peft publish` tells others."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            save_recipe(self.recipe, Path(args.output_dir) / RECIPE_FILE)


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
    focus = recipe.focus
    if focus.add_bos is None and run.initial_adapter is not None:
        focus = replace(focus, add_bos=FocusConfig.from_pretrained(run.initial_adapter).add_bos)
    adapted = get_peft_model(model, focus)
    depends_on = {}
    if run.initial_adapter is not None:
        depends_on["initial_adapter"] = start_from(adapted, run.initial_adapter)
    return FocusTrainer(
        model=adapted,
        args=args,
        train_dataset=data.train,
        eval_dataset=held_out,
        data_collator=DocumentCollator(),
        processing_class=tokenizer,
        eval_tasks=tasks,
        depends_on=depends_on,
        callbacks=[] if run.patience is None else [EarlyStoppingCallback(run.patience)],
    )


def start_from(model: PeftModel, adapter: str) -> str:
    """Give a model's twins the weights of another adapter.

    Returns:
        `str`: a digest of the weights.

    Raises:
        ValueError: if that adapter has other twins.
    """
    given, wanted = FocusConfig.from_pretrained(adapter), cast(FocusConfig, model.peft_config["default"])
    theirs = _twins(given)
    for name, value in _twins(wanted).items():
        if value != theirs[name]:
            raise ValueError(
                f"`{name}` is {value!r}, but {theirs[name]!r} in the `initial_adapter` {adapter!r}; give it the same "
                "value."
            )
    weights = load_peft_weights(adapter, device="cpu")
    loaded: Any = set_peft_model_state_dict(model, weights)
    if loaded.unexpected_keys:
        raise ValueError(
            f"`initial_adapter` {adapter!r} has twins that this model lacks, such as {loaded.unexpected_keys[0]!r}; "
            "it belongs to another base model."
        )
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _twins(config: FocusConfig) -> dict[str, Any]:
    """What must be the same in adapters whose weights mean the same; defaults are filled in."""
    alpha = None if config.r is None else config.scaling * config.r
    modules = config.target_modules
    ordered = sorted(modules) if isinstance(modules, list) else modules
    return {"r": config.r, "alpha": alpha, "target_modules": ordered}


def dry_run(config: str, overrides: Sequence[str]) -> None:
    """Print what a run would be: on a few documents, in a folder that is removed. For another machine, from the shapes
    of the model alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        fixed: dict[str, Any] = {"training__output_dir": folder, "training__report_to": "none"}
        fixed["data__cache_dir"] = folder
        planned = plan(config, overrides, fixed)
        if planned is not None:
            show(planned)
            return
        recipe = load_recipe(config, overrides, **fixed)
        recipe.training.push_to_hub = False
        if recipe.training.max_steps > 0:  # else the number of documents decides
            few = [replace(s, max_documents=min(s.max_documents or SAMPLED, SAMPLED)) for s in recipe.data.sources]
            recipe.data = replace(recipe.data, sources=few, bands=None, held_out=0)
        strategy = recipe.training.eval_strategy
        if not recipe.data.held_out:
            recipe.training.eval_strategy = "no"
        trainer = make_trainer(recipe)
        trainer.args.eval_strategy = strategy
        trainer.check()
        if recipe.run.resume not in ("auto", True):
            trainer.checkpoint_to_resume(recipe.run.resume)
        lines = describe(trainer, recipe)
        if trainer.is_world_process_zero():
            show(lines)
        if trainer.args.world_size > 1:
            trainer.accelerator.wait_for_everyone()


def show(lines: Mapping[str, str]) -> None:
    print("\n".join(f"{name + ':':24} {value}" for name, value in lines.items()))


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = parser_of(__doc__, config="the recipe")
    dry_run = "print model, steps, tokens, memory and time; train nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    return parser.parse_known_args()


if __name__ == "__main__":
    options, overrides = parse_args()
    try:
        with sentences():
            if options.dry_run:
                dry_run(options.config, overrides)
                sys.exit()
            recipe = load_recipe(options.config, overrides)
        main(recipe)  # of a run that fails, the traceback is wanted
    except TrainingInterrupted as interrupt:
        print(interrupt, file=sys.stderr)
        sys.exit(interrupt.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except TrainingDiverged as error:
        sys.exit(f"error: {error}")
