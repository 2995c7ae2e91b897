"""What the tests of the trainer share: documents in memory, a trainer on a tiny model, and runs in processes of their
own.

python runs.py RUN.json
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT, make_focus_model, make_tiny_tokenizer, perturb_twins, random_ids
from fresh import run_apart
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

import focus_peft
from focus_peft import FocusConfig
from focus_peft.data.collator import DocumentCollator
from focus_peft.trainer.arguments import FocusTrainingArguments, join_processes
from focus_peft.trainer.trainer import FocusTrainer


TINY = "recipes/configs/tiny_debug.yaml"
# what a run logs that must be the same wherever and however often it was interrupted
LOSSES = ("loss", "loss_continuation", "loss_repetition", "loss_local", "grad_norm", "eval_loss")
FOCUS = {"chunk_size": 8, "local_size": 8, "prompt_size": 4, "label_size": 4}


class Documents(torch.utils.data.Dataset):
    """Documents of `length` to `length + spread` tokens, with a seed for each in each epoch."""

    def __init__(self, count: int, length: int = 50, spread: int = 10, stride: int = 3) -> None:
        self.rows = [random_ids(length + stride * number % spread, number).tolist() for number in range(count)]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {"input_ids": row, "labels": list(row), "sample_seed": 1000 * self.epoch + index}


def arguments(directory: str | Path, kind: type = FocusTrainingArguments, **fields: Any) -> Any:
    defaults = {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "max_steps": 4,
        "seed": 0,
    }
    return kind(output_dir=str(directory), **{**defaults, **fields})


def loaded(base: str, focus: dict[str, Any]) -> PeftModel:
    """A model from a folder, with an adapter that is the same in every process."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)  # low-rank twins start at random
    model = get_peft_model(model, FocusConfig(**{**FOCUS, **focus}))
    perturb_twins(model)
    return model


def trainer_of(
    directory: str | Path,
    model: PeftModel | None = None,
    documents: int | Documents = 8,
    focus: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> FocusTrainer:
    own = {name: fields.pop(name) for name in ("callbacks", "eval_tasks", "processing_class") if name in fields}
    data = Documents(documents) if isinstance(documents, int) else documents
    return FocusTrainer(
        model=make_focus_model(dtype=dtype, **{**FOCUS, **(focus or {})}) if model is None else model,
        args=arguments(directory, **fields),
        train_dataset=data,
        eval_dataset=Documents(3),
        data_collator=DocumentCollator(),
        **own,
    )


def trained(directory: str | Path, resume: str | bool | None = None, **fields: Any) -> FocusTrainer:
    """A trainer that has trained, from the start or from a checkpoint; `fields` as of `trainer_of`."""
    trainer = trainer_of(directory, **fields)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_same_losses(found: FocusTrainer, expected: FocusTrainer) -> None:
    assert losses(found.state.log_history) == losses(expected.state.log_history)


def logged(trainer: FocusTrainer | list[dict[str, Any]], name: str) -> list[float]:
    history = trainer if isinstance(trainer, list) else trainer.state.log_history
    return [entry[name] for entry in history if name in entry]


def losses(history: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """The losses that were logged, by step."""
    found: dict[int, dict[str, float]] = {}
    for entry in history:
        found.setdefault(entry["step"], {}).update({name: entry[name] for name in LOSSES if name in entry})
    return {step: values for step, values in found.items() if values}


def adapter(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".focus_" in name}


class KillAtStep(TrainerCallback):
    """Dies at the end of a step, as if by `kill -9`."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


class KillingTokenizer:
    """What dies in the middle of the given checkpoint: a tokenizer is saved after the weights and before the
    optimizer.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def save_pretrained(self, directory: str, **kwargs: Any) -> None:
        if Path(directory).name == self.checkpoint:
            os.kill(os.getpid(), signal.SIGKILL)


def environment() -> dict[str, str]:
    tests, package = Path(__file__).parent, Path(focus_peft.__file__).parents[1]
    path = os.pathsep.join([str(package), str(tests), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def history(directory: Path) -> dict[int, float]:
    """The losses that the last checkpoint has logged."""
    last = max(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    entries = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def run(directory: Path, processes: int = 1, timeout: float = 600, **fields: Any) -> subprocess.CompletedProcess[str]:
    """Do what `main` does with these fields, in one or several processes."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "run.json"
    file.write_text(json.dumps({"directory": str(directory), **fields}))
    if processes == 1:
        ((code, printed),) = run_apart(main, [(str(file),)], directory, timeout)
        return subprocess.CompletedProcess([], code, "", printed)
    return start(Path(__file__), str(file), processes=processes, timeout=timeout)


def start(script: str | Path, *words: str, processes: int, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes, from the root of the repository."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, "-W", "ignore", *launcher, str(script), *words]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)


def main(file: str) -> None:
    """Train as the file says, and write the log history."""
    torch.set_num_threads(1)
    options = json.loads(Path(file).read_text())
    directory = Path(options["directory"])
    args = arguments(directory / "run", **options.get("args", {}))
    join_processes(args)
    if options.get("base"):
        model = loaded(options["base"], options.get("focus", {}))
    else:
        model = make_focus_model(dtype=torch.float32, **{**FOCUS, **options.get("focus", {})})
    callbacks = [KillAtStep(*options["kill"])] if "kill" in options else []
    dies = options.get("dies_in")
    trainer = FocusTrainer(
        model=model,
        args=args,
        train_dataset=Documents(options.get("documents", 8), *options.get("lengths", ())),
        eval_dataset=Documents(3),
        data_collator=DocumentCollator(),
        callbacks=callbacks,
        processing_class=KillingTokenizer(dies) if dies else make_tiny_tokenizer(),
    )
    trainer.train(resume_from_checkpoint=options.get("resume"))
    trainer.save_model(str(directory / "adapter"))
    fingerprint = model.base_model.fingerprint.to_dict()  # by all processes together, where the weights are divided
    if trainer.is_world_process_zero():
        (directory / "history.json").write_text(json.dumps(trainer.state.log_history))
        (directory / "fingerprint.json").write_text(json.dumps(fingerprint))


if __name__ == "__main__":
    main(sys.argv[1])
