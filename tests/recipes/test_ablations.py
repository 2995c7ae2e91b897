"""`recipes/ablations.py`: every variant is trained and evaluated once, also after a stop, and all are in one table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from refusal import refusal
from runs import ROOT, environment
from safetensors.torch import load_file


pytest.importorskip("focus_peft.data")
pytest.importorskip("datasets")

from ablating.configuration import Ablations, words
from ablating.tables import tables
from ablations import main, parse_args
from lib.base_model import ModelArguments, load_model
from peft import get_peft_model

from focus_peft import FocusConfig
from focus_peft.hub.markdown import table


READING = ROOT / "recipes" / "ablations" / "smollm2_reading.yaml"
CONFIGS = sorted({*(ROOT / "recipes" / "ablations").glob("*.yaml")} - {READING})
TINY = "recipes/ablations/tiny_debug.yaml"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # configurations name files as one sees them from there


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_configuration_builds_with_the_studies_that_are_wanted_and_opens_with_its_command(file: Path) -> None:
    # what is meant for GPUs is built on any machine
    ablations = Ablations.load(str(file), ["train.use_cpu=true"])
    assert list(ablations.studies) == [
        "losses",
        "twins",
        "decoding",
        "local size",
        "chunk size",
        "prompt size",
    ]
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert f"recipes/ablations.py --config recipes/ablations/{file.name}" in "\n".join(comment)
    trained = {variant.training for variant in ablations.variants if variant.study in ("losses", "twins", "decoding")}
    assert trained == {variant.training for variant in ablations.variants}, "all others change how one adapter reads"
    plain = {variant.training for variant in ablations.variants if not variant.train}
    assert len(plain) == 1
    paper = {variant.name: variant for variant in ablations.variants if variant.study == "losses"}
    assert list(paper) == ["both", "continuation only", "repetition only"] and not paper["both"].train
    assert ablations.output_dir == f"outputs/ablations/{file.stem}"


def test_a_configuration_with_an_adapter_trains_nothing_and_has_the_studies_of_how_one_reads() -> None:
    ablations = Ablations.load(str(READING))
    assert {variant.training for variant in ablations.variants} == {None}
    config = FocusConfig.from_pretrained(str(ablations.adapter))
    # every study has the adapter as it is, which is then evaluated once for all of them
    own = {
        "decoding": config.decoding,
        "local size": config.local_size,
        "chunk size": config.chunk_size,
        "prompt size": config.prompt_size,
        "storage": config.storage,
    }
    assert list(ablations.studies) == list(own)
    plain = {v.study: v.name for v in ablations.variants if not [key for key in v.evaluate if "focus" in key]}
    assert plain == {study: str(value) for study, value in own.items()}
    assert f"--config recipes/ablations/{READING.name}" in READING.read_text()


def test_variants_share_an_adapter_where_their_recipes_are_the_same() -> None:
    studies = {
        "a": {
            "none": None,
            "same": {"train": {"focus.r": 8, "output_dir": "elsewhere"}},  # what it is, and where it goes
            "other": {"train": {"focus.r": 4}},
            "reads": {"evaluate": {"focus.chunk_size": 32}},
        }
    }
    variants = Ablations.load(TINY, words({"studies": studies})).variants
    none, same, other, reads = (variant.training for variant in variants)
    assert none == same == reads != other
    (shorter, *_) = Ablations.load(TINY, words({"studies": studies, "train.max_steps": 3})).variants
    assert shorter.training != none


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"color": "red"}, ("`color`", "studies")),
        ({"studies": 3}, ("`studies`", "int")),
        ({"evaluation": None}, ("`evaluation`", "recipes/ablations")),
        ({"recipe": None}, ("`recipe`", "`adapter`", "None and None")),
        ({"adapter": "hub/one"}, ("`recipe`", "`adapter`", "'hub/one'")),
        ({"recipe": None, "adapter": "hub/one"}, ("`train`", "max_steps=4", "`recipe`")),
        (
            {"recipe": None, "adapter": "hub/one", "train": None, "studies": {"a": {"b": {"train": {"focus.r": 8}}}}},
            ("`studies.a.b`", "`train`", "focus.r=8"),
        ),
        (
            {"recipe": None, "adapter": "hub/one", "train": None, "studies": {"a": {"b": None}}},
            ("`adapter`", "'hub/one'", "download"),
        ),
        ({"studies": {"a": {}}}, ("`studies`", "variants")),
        ({"studies": {"a": {"b": {"training": {}}}}}, ("`studies.a.b`", "`training`", "train, evaluate")),
        ({"studies": {"a": {"b": {"train": {"focus.R": 8}}}}}, ("`studies.a.b`", "`focus`", "`R`")),
        ({"studies": {"a": {"b": {"train": {"seed": 8}}}}}, ("`studies.a.b`", "data and training")),
        ({"studies": {"a": {"b": {"train": {"focus.r": 0}}}}}, ("`studies.a.b`", "`r`", "0")),
        ({"studies": {"a": {"b": {"evaluate": {"tasks.vx": {}}}}}}, ("`studies.a.b`", "`vx`", "passkey")),
        ({"studies": {"a": {"b": {"evaluate": {"focus.chunk_size": -1}}}}}, ("`studies.a.b`", "`chunk_size`", "-1")),
        ({"studies": {"a": {"b": {"evaluate": {"focus.chunks": 1}}}}}, ("`studies.a.b`", "`focus.chunks`")),
    ],
)
def test_configurations_that_cannot_be_are_refused(overrides: dict[str, Any], named: tuple[str, ...]) -> None:
    with refusal(*named):
        Ablations.load(TINY, words(overrides))


def start(config: Path, *more: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "recipes/ablations.py", "--config", str(config), *more]
    return subprocess.Popen(command, env=environment(), stdout=stdout, stderr=subprocess.PIPE, text=True)


def files(folder: Path) -> dict[str, int]:
    """When everything that takes long was written."""
    kept = ("adapter_model.safetensors", "samples.jsonl")
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in kept}


def small(folder: Path, studies: dict[str, Any], **more: Any) -> Path:
    """The tiny configuration with other studies; everything it leaves goes to `folder`."""
    values = {**yaml.safe_load((ROOT / TINY).read_text()), "studies": studies, "output_dir": str(folder / "out")}
    values["train"] |= {"cache_dir": str(folder / "cache"), "eval_strategy": "no", **more}
    values["evaluate"]["tasks"] = {"passkey": {"samples": 2}}
    (folder / "small.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "small.yaml"


@pytest.mark.long
@pytest.mark.slow
def test_variants_are_trained_and_evaluated_once_and_a_failure_ends_nothing(tmp_path: Path) -> None:
    studies = {
        "losses": {"both": None, "continuation only": {"train": {"focus.repetition_weight": 0}}},
        "chunk size": {
            "too large": {"train": {"focus.chunk_size": 4096}},  # the model has 512 positions
            32: {"evaluate": {"focus.chunk_size": 32}},
            64: None,
        },
    }
    config, out = small(tmp_path, studies), tmp_path / "out"
    process = start(config)
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 1 and "error: some variants failed" in errors, errors[-3000:]
    found = json.loads((out / "results.json").read_text())
    entries = {entry["variant"]: entry for entry in found["variants"]}
    assert list(entries) == ["both", "continuation only", "too large", "32", "64"]
    assert "recipes/train.py" in entries["too large"]["failed"] and "results" not in entries["too large"]
    adapters = {name: entry.get("adapter") for name, entry in entries.items()}
    assert adapters["both"] == adapters["32"] == adapters["64"] != adapters["continuation only"]
    assert len(list(out.glob("training/*/trained.json"))) == 2
    assert FocusConfig.from_pretrained(adapters["continuation only"]).repetition_weight == 0
    assert entries["both"]["parameters"] == 7168
    folders = {name: entry.get("samples") for name, entry in entries.items()}
    assert folders["both"] == folders["64"] and len({*folders.values()} - {None}) == 3
    for name, chunk in (("both", 64), ("32", 32)):
        summary = json.loads(Path(folders[name], "summary.json").read_text())
        assert summary["results"] == entries[name]["results"] and len(summary["results"]) == 1
        assert summary["configuration"]["windows"]["sizes"]["chunk"] == chunk
        assert summary["configuration"]["adapter"] == adapters[name]
    text = (out / "table.md").read_text()
    assert text == table_of(found) and text.strip() in printed

    before = files(out)
    again = start(config, "--studies", "losses")
    printed, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors[-3000:]
    assert files(out) == before and before, "nothing is done twice"
    assert json.loads((out / "results.json").read_text()) == found, "and nothing of the other studies is lost"


@pytest.mark.slow
def test_variants_read_with_one_adapter_that_is_there(tmp_path: Path) -> None:
    model = yaml.safe_load((ROOT / "recipes" / "evaluations" / "tiny_debug.yaml").read_text())["model"]
    base, _ = load_model(ModelArguments(**model))
    adapted = get_peft_model(base, FocusConfig(r=4, chunk_size=64, local_size=64, prompt_size=16))
    adapted.save_pretrained(tmp_path / "adapter")
    values = yaml.safe_load(
        small(tmp_path, {"chunk size": {32: {"evaluate": {"focus.chunk_size": 32}}, 64: None}}).read_text()
    )
    del values["recipe"], values["train"]
    config = tmp_path / "reading.yaml"
    config.write_text(yaml.safe_dump({**values, "adapter": str(tmp_path / "adapter")}))
    assert main(*parse_args(["--config", str(config), "--dry-run"]))
    assert not (tmp_path / "out").exists()
    assert main(*parse_args(["--config", str(config)]))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["adapter"] == str(tmp_path / "adapter")
    for entry, chunk in zip(found["variants"], (32, 64), strict=True):
        assert entry["variant"] == str(chunk) and entry["training"] is None
        summary = json.loads(Path(entry["samples"], "summary.json").read_text())
        assert summary["configuration"]["windows"]["sizes"]["chunk"] == chunk
        assert [result["task"] for result in summary["results"]] == ["passkey"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        "evaluations",
        "results.json",
        "table.md",
    ]


def table_of(found: dict[str, Any]) -> str:
    return f"`{found['command']}`\n\n" + tables(found["variants"])


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_is_ended_saves_a_checkpoint_and_goes_on_to_the_same_adapter(tmp_path: Path) -> None:
    weights = []
    for name, ends in (("whole", False), ("ended", True)):
        (tmp_path / name).mkdir()
        config = small(tmp_path / name, {"a": {"b": None}}, max_steps=20, save_steps=100)
        out = tmp_path / name / "out"
        process = start(config, stdout=subprocess.DEVNULL)
        if ends:
            deadline = time.monotonic() + 400
            # tensorboard's file appears when the first step begins
            while not list(out.glob("training/*/runs/*")) and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            assert list(out.glob("training/*/runs/*")), "training did not begin"
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 130 and "the same command goes on" in errors, errors
            assert "a checkpoint was saved" in errors
            assert not list(out.glob("training/*/trained.json")) and not list(out.glob("evaluations/*"))
            process = start(config, stdout=subprocess.DEVNULL)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        (folder,) = out.glob("training/*")
        weights.append(load_file(folder / "adapter_model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.long
@pytest.mark.slow
def test_a_dry_run_says_what_would_be_run_and_leaves_nothing_behind(tmp_path: Path) -> None:
    studies = {"losses": {"both": None}, "chunk size": {32: {"evaluate": {"focus.chunk_size": 32}}}}
    config = small(tmp_path, studies)
    process = start(config, "--dry-run")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert "training losses, both: " in printed and "1 trainings: 0.00 h in all" in printed
    assert "2 evaluations: 4 samples of 1,600 tokens" in printed
    assert os.listdir(tmp_path) == ["small.yaml"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the training can be tried on a GPU")
def test_a_dry_run_of_epochs_that_cannot_be_tried_here_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_gpu = {"model.load_in_4bit": True, "use_cpu": False, "max_steps": -1, "num_train_epochs": 1}
    assert main(*parse_args(["--config", str(small(tmp_path, {"losses": {"both": None}}, **on_gpu)), "--dry-run"]))
    assert "training losses, both: not measured: `load_in_4bit` needs a GPU" in capsys.readouterr().out


def test_options_and_texts_that_there_are_not_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    absent = small(tmp_path, {"losses": {"both": {"evaluate": {"texts": ["nothing/*.txt"]}}}})
    for more, named in (((), "nothing/"), (("--studies", "twins"), "`twins`")):
        with pytest.raises(SystemExit, match=f"^error: .*{named}"):
            main(*parse_args(["--config", str(absent), *more]))
    records = {"evaluate": {"tasks": {"longbench/trec": {}}, "data": {"longbench": "nothing"}}}
    with pytest.raises(SystemExit, match="^error: .*nothing"):
        main(*parse_args(["--config", str(small(tmp_path, {"losses": {"both": records}}))]))
    assert os.listdir(tmp_path) == ["small.yaml"]


def test_published_records_have_a_column_for_whole_ones() -> None:
    result = {"task": "longbench/trec", "method": "adapter", "length": None, "metric": "classification", "mean": 0.5}
    result |= {"samples": 2, "planned": 2, "seconds_per_sample": 1.0}
    reason = {"task": "longbench/lcc", "method": "adapter", "length": None, "reason": "it is too long"}
    entry = {"study": "sizes", "variant": "4", "train": {}, "evaluate": {}, "parameters": 1}
    lines = tables([{**entry, "results": [result], "not_run": [reason]}]).splitlines()
    wanted = table(["", "longbench/trec, whole", "seconds a sample"], [["4", "0.50 (2)", "1"]])
    assert lines[2:5] == wanted.splitlines()
    assert lines[-1] == "  - adapter, longbench/lcc, whole: it is too long"


def test_a_table_has_a_row_for_each_variant_and_method_and_says_what_was_changed() -> None:
    def result(method: str, mean: float, seconds: float, samples: int = 2) -> dict[str, Any]:
        common = {"task": "vt", "method": method, "length": 4096, "metric": "score", "planned": 2}
        return {**common, "samples": samples, "mean": mean, "seconds_per_sample": seconds}

    head = {"study": "sizes", "train": {}, "evaluate": {}, "parameters": 2_000_000}
    reason = {"task": "vt", "method": "b", "length": 4096, "reason": "it is too long"}
    entries: list[dict[str, Any]] = [
        {**head, "variant": "4", "results": [result("a", 0.5, 1.0), result("b", 0.25, 3.0, 1)]},
        {**head, "variant": "8", "results": [result("a", 1, 2.0)], "not_run": [reason], "parameters": 4_000_000},
        {**head, "variant": "9", "train": {"focus.r": 9}, "failed": "`this` ended with code 1", "parameters": None},
    ]
    rows = [["4: a", "2M", "0.50 (2)", "1"], ["4: b", "2M", "0.25 (1 of 2)", "3"], ["8: a", "4M", "1.00 (2)", "2"]]
    rows += [[name, "–", "–", "–"] for name in ("8: b", "9: a", "9: b")]
    assert tables(entries).splitlines() == [
        "## sizes",
        "",
        *table(["", "parameters", "vt, 4,096 tokens", "seconds a sample"], rows).splitlines(),
        "",
        "- 4: nothing is changed",
        "- 8: nothing is changed",
        "  - b, vt, 4,096: it is too long",
        "- 9: train `focus.r=9`; failed: `this` ended with code 1",
    ]
