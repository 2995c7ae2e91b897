"""Means over an evaluation's samples, their intervals and differences, and the tables of them."""

from __future__ import annotations

import math
from typing import Any

import pytest


pytest.importorskip("datasets")

from evaluating.averages import ruler_averages
from evaluating.configuration import Evaluation
from evaluating.means import summarize, wilson
from evaluating.published_results import publishable
from evaluating.result_tables import tables
from small_evaluation import ROOT

from focus_peft.hub.markdown import table
from focus_peft.tasks import TASKS


LONGPPL = ("longppl", "cross_entropy")


def sample(task: tuple[str, str], method: str, number: int, score: float | None, **more: Any) -> dict[str, Any]:
    """A sample of 64 tokens; `task` is its name and metric."""
    common = {"task": task[0], "metric": task[1], "length": 64, "seconds": 1.0}
    return {**common, "method": method, "number": number, "score": score, **more}


@pytest.mark.parametrize(
    ("right", "samples", "low", "high"),  # as in Wilson (1927), and in Brown, Cai and DasGupta (2001)
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 2, 0.0945, 0.9055),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilsons_interval(right: int, samples: int, low: float, high: float) -> None:
    assert wilson(right, samples) == pytest.approx((low, high), abs=5e-5)


def test_means_and_cells() -> None:
    vt, passkey, text = ("vt", "score"), ("passkey", "accuracy"), ("perplexity", "cross_entropy")
    samples = [sample(vt, "a", n, score) for n, score in enumerate((0.2, 0.4, 0.6))]
    samples += [sample(passkey, "b", 0, 1.0), sample(text, "b", 0, math.log(7))]
    planned = {("vt", "a", 64): 3, ("passkey", "b", 64): 2, ("perplexity", "b", 64): 1, ("passkey", "c", 64): 2}
    results = summarize(samples, planned)
    assert results[0]["mean"] == pytest.approx(0.4) and results[0]["standard_error"] == pytest.approx(0.2 / 3**0.5)
    assert results[2]["perplexity"] == pytest.approx(7) and "standard_error" not in results[2]
    assert [result["seconds_per_sample"] for result in results] == [1.0] * 3
    skipped = [{"task": "passkey", "method": "c", "length": 128, "reason": "It is too long."}]
    assert tables(results, skipped) == (
        f"## vt: mean score ± standard error\n\n{table(['tokens', '64'], [['a', '0.40 ± 0.12 (3)']])}\n\n"
        "## passkey: accuracy [95 % interval]\n\n"
        + table(["tokens", "64", "128"], [["b", "1.00 [0.21, 1.00] (1 of 2)", "–"], ["c", "–", "–"]])
        + "\n\nNot run:\n\n- c, 128 tokens: It is too long.\n\n"
        f"## perplexity: perplexity\n\n{table(['tokens', '64'], [['b', '7.00 (1)']])}\n"
    )


def test_answers_to_the_letter_have_a_share_of_their_own() -> None:
    line = ("cross_file_line", "score")
    samples = [sample(line, "a", n, score, exact=score == 1) for n, score in enumerate((1.0, 0.5, 0.6))]
    (result,) = summarize(samples, {("cross_file_line", "a", 64): 3})
    assert result["mean"] == pytest.approx(0.7) and result["exact"] == pytest.approx(1 / 3)
    assert table(["tokens", "64"], [["a", "0.70 ± 0.15, exact 0.33 (3)"]]) in tables([result], [])


def test_rulers_mean_is_over_all_of_its_tasks_or_is_not_there() -> None:
    ruler = [*(name for name in TASKS if name.startswith("niah")), "vt", "cwe", "fwe"]
    assert len(ruler) == 11
    samples = [sample((task, "score"), m, 0, n / 10) for n, task in enumerate(ruler) for m in ("a", "b")]
    results = summarize(samples[:-1], {(task, method, 64): 1 for task in ruler for method in ("a", "b")})
    (mean,) = ruler_averages(results)
    assert (mean["method"], mean["length"]) == ("a", 64) and mean["mean"] == pytest.approx(sum(range(11)) / 110)
    assert f"## RULER: mean of its 11 tasks above\n\n{table(['tokens', '64'], [['a', '0.50']])}\n" in tables(
        results, []
    )


def test_a_text_that_nobody_is_scored_on_does_not_hide_a_baseline() -> None:
    rows = [("adapter", 1.0, 2), ("adapter", None, 0), ("bm25", 2.0, 2), ("bm25", None, 0)]
    samples = [sample(LONGPPL, m, n % 2, score, labels=k) for n, (m, score, k) in enumerate(rows)]
    results = summarize(samples, {("longppl", method, 64): 2 for method in ("adapter", "bm25")})
    evaluation = Evaluation.load(str(ROOT / "recipes" / "evaluations" / "smollm2.yaml"))
    published = publishable(results, "a command", evaluation)
    found = [(r.metric, r.subject, r.value) for r in published if r.metric == "perplexity"]
    assert found == [("perplexity", "adapter", round(math.e, 4)), ("perplexity", "bm25", round(math.e**2, 4))]


def test_a_cross_entropy_is_held_against_the_adapters_on_the_same_texts() -> None:
    # a text that is hard for both must not count against the one that has read it
    rows = [("adapter", n, score, n + 1) for n, score in enumerate((1.0, 2.0, 9.0))]
    rows += [("bm25", 0, 1.5, 1), ("bm25", 1, 2.25, 2), ("bm25", 7, 4.0, 8)]
    rows += [("yarn", 2, 8.0, 3), ("dynamic_ntk", 7, 1.0, 8), ("yarn", 5, None, 0)]
    samples = [sample(LONGPPL, method, number, score, labels=labels) for method, number, score, labels in rows]
    methods = ("adapter", "bm25", "yarn", "dynamic_ntk")
    results = {r["method"]: r for r in summarize(samples, {("longppl", method, 64): 9 for method in methods})}
    assert "above_adapter" not in results["adapter"] and "above_adapter" not in results["dynamic_ntk"]
    mean = (0.5 * 1 + 0.25 * 2) / 3
    error = math.sqrt(2 * ((0.5 - mean) ** 2 + (2 * (0.25 - mean)) ** 2)) / 3
    assert results["bm25"]["above_adapter"] == pytest.approx(
        {"samples": 2, "same_texts": False, "mean": mean, "standard_error": error}
    )
    one = {"samples": 1, "same_texts": False, "mean": -1.0}
    assert results["yarn"]["above_adapter"] == one and results["yarn"]["samples"] == 2
    assert tables(list(results.values()), []).split("\n\n", 2)[2] == (
        "### longppl: cross-entropy above the adapter's on the same texts, in nats a token ± standard error\n\n"
        + table(["tokens", "64"], [["bm25", f"+0.333 ± {error:.3f} (2)"], ["yarn", "-1.000 (1)"]])
        + "\n"
    )
