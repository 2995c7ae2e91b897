"""`recipes/evaluate.py` on published records: all tasks of both benchmarks, in the formats of their files."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest


pytest.importorskip("datasets")
pytest.importorskip("jieba")
pytest.importorskip("rouge")
pytest.importorskip("rouge_score")

from evaluating.averages import averages
from evaluating.configuration import Evaluation
from evaluating.evaluator import load
from evaluating.sample_file import key_of
from small_evaluation import ROOT, read, recipe, run, summary_of, write_config
from test_records import FOLDERS

from focus_peft.hub.results import load_results
from focus_peft.tasks import RECORD_TASKS, Adapter, FullAttention, Source


POSITIONS = 512
NEW = 4


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A random model that reads bytes, and all tasks with short answers."""
    return write_config(tmp_path, data=FOLDERS, tasks={name: {"new_tokens": NEW} for name in RECORD_TASKS})


@pytest.mark.slow
def test_every_record_is_read_whole_by_the_adapter_and_cut_for_a_shorter_window(config: Path) -> None:
    done, folder = run(config)
    assert done
    samples = read(folder)
    counts = {name: task.file(FOLDERS).facts().records for name, task in RECORD_TASKS.items()}
    assert {key_of(sample) for sample in samples} == {
        (name, method, None, number)
        for name, count in counts.items()
        for method in ("adapter", "full_attention")
        for number in range(count)
    }
    model, tokenizer = load(Evaluation.load(str(config)))
    source = Source(tokenizer, data=FOLDERS)
    methods = {"adapter": Adapter(model), "full_attention": FullAttention(model)}
    for sample in samples:
        task = RECORD_TASKS[sample["task"]]
        whole = task.sample(source, None, sample["number"], counts[task.name])
        long = len(whole.ids) + NEW > POSITIONS
        assert sample["cut"] == (long and sample["method"] == "full_attention")
        # some letters are halves at the seam, and make one token or two less
        assert sample["input_tokens"] in (
            range(POSITIONS - NEW - 2, POSITIONS - NEW + 1) if sample["cut"] else (len(whole.ids),)
        )
        assert sample["references"] == list(whole.references) and sample["metric"] == task.metric
        assert sample["score"] == task.score_sample(sample["prediction"], whole)
        if sample["task"] in ("longbench/qasper", "infinitebench/kv_retrieval"):
            answer = methods[sample["method"]].generate(whole.ids, NEW)
            assert sample["prediction"] == tokenizer.decode(answer, skip_special_tokens=True)
    assert any(sample["cut"] for sample in samples)
    summary, table = summary_of(folder), (folder / "table.md").read_text("utf-8")
    assert summary["not_run"] == [] and {result["length"] for result in summary["results"]} == {None}
    assert "## LongBench, whole records: percent" in table and "## InfiniteBench, whole records: percent" in table
    assert "| task | metric | adapter | full_attention |" in table
    assert [line.split(" | ")[0] for line in table.splitlines() if "| average |" in line] == [
        "| **all tasks**",  # the configuration is sorted by name
        "| **single-document QA, English**",
        "| **single-document QA, Chinese**",
        "| **multi-document QA, English**",
        "| **multi-document QA, Chinese**",
        "| **summarization, English**",
        "| **summarization, Chinese**",
        "| **few-shot, English**",
        "| **few-shot, Chinese**",
        "| **synthetic, English**",
        "| **synthetic, Chinese**",
        "| **code**",
        "| **English**",
        "| **Chinese**",
    ]
    cut = sum(sample["cut"] for sample in samples if sample["task"] == "longbench/narrativeqa")
    assert f"- full_attention, narrativeqa: {cut} of 2 prompts cut in the middle" in table
    published = load_results(folder / "results.json")
    assert {"THUDM/LongBench, lcc", "xinrongzhang2022/InfiniteBench, math_find"} <= {
        entry.dataset for entry in published
    }
    assert all("length" not in entry.settings for entry in published)


def test_averages_are_those_of_longbench() -> None:
    # GPT-3.5-Turbo-16k as LongBench's README has it, where its averages are rounded
    line = "23.6 43.3 52.3 61.2 51.6 37.7 26.9 28.7 29.5 23.4 26.7 16.0 68.0 91.4 41.7 29.2 4.5 71.0 77.5 54.7 53.6"
    scores = [float(score) for score in line.split()]
    names = [name for name in RECORD_TASKS if name.startswith("longbench/")]
    results = [
        {"task": name, "method": "gpt", "length": None, "mean": score / 100}
        for name, score in zip(names, scores, strict=True)
    ]
    found = {entry["over"]: 100 * entry["mean"] for entry in averages(results)}
    expected = {"single-document QA": (39.8, 61.2), "multi-document QA": (38.7, 28.7), "summarization": (26.5, 16.0)}
    expected |= {"few-shot": (67.1, 29.2), "synthetic": (37.8, 77.5)}
    assert found["code"] == pytest.approx(54.1, abs=0.1)
    for category, (english, chinese) in expected.items():
        assert found[f"{category}, English"] == pytest.approx(english, abs=0.1)
        assert found[f"{category}, Chinese"] == pytest.approx(chinese, abs=0.1)
    assert found["English"] == pytest.approx(44.0, abs=0.05) and found["Chinese"] == pytest.approx(44.5, abs=0.05)
    # an average over less than all of its tasks would be another
    fewer = {entry["over"] for entry in averages(results[1:])}
    assert fewer == found.keys() - {"single-document QA, English", "English"}


def test_records_may_be_cut_to_a_length_for_all_methods(config: Path) -> None:
    words = ("tasks={longbench/narrativeqa: {new_tokens: 4, lengths: [200, whole], samples: 1}}", "methods=[adapter]")
    _, folder = run(config, *words)
    short, whole = read(folder)
    assert (short["length"], short["cut"], whole["length"], whole["cut"]) == (200, True, None, False)
    assert short["input_tokens"] == 196 < whole["input_tokens"]
    table = (folder / "table.md").read_text("utf-8")
    assert "## LongBench, records of at most 200 tokens: percent" in table
    assert run(config, *words, "--lengths", "whole")[1] == folder and len(read(folder)) == 2


def test_what_a_method_cannot_read_at_all_is_noted(config: Path) -> None:
    done, folder = run(config, "tasks={longbench/lcc: {new_tokens: 600}}", "methods=[full_attention]")
    assert done and not read(folder)
    assert (
        "- full_attention, lcc: not run. 601 tokens are more than the 512 positions"
        in (folder / "table.md").read_text()
    )


def test_other_records_have_another_folder_and_another_place_for_them_has_not(config: Path, tmp_path: Path) -> None:
    words = ("tasks={longbench/lcc: {new_tokens: 4}}", "--methods", "adapter")
    _, first = run(config, *words)
    copy = tmp_path / "copy"
    copy.mkdir()
    text = Path(FOLDERS["longbench"], "lcc.jsonl").read_text()
    (copy / "lcc.jsonl").write_text(text)
    assert run(config, *words, f"data.longbench={copy}")[1] == first
    (copy / "lcc.jsonl").write_text(text * 2)
    _, second = run(config, *words, f"data.longbench={copy}")
    assert second != first and len(read(second)) == 2 * len(read(first)) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("data.longbench=nowhere",), "`data.longbench` is 'nowhere', but there is no"),
        (("data=null", "tasks={longbench/lcc: {}}"), "HF_HUB_OFFLINE is set"),
        (("data.other=x",), "`data` has the unknown entry `other`; there are longbench, infinitebench."),
        (("tasks={longbench/lcx: {}}",), "unknown entry `longbench/lcx`"),
        (("tasks={longbench/lcc: {samples: 0}}",), "`samples` above 0"),
        (("tasks={longbench/lcc: {lengths: [hole]}}",), "'hole'"),
        (("tasks={passkey: {lengths: [whole]}}",), "'whole'"),
        (("--lengths", "400"), "`--lengths` names 400, but the configuration has whole"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is_loaded(
    words: tuple[str, ...], named: str, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("evaluating.evaluator.load", None)
    with pytest.raises(SystemExit) as caught:
        recipe.main(*recipe.parse_args(["--config", str(config), *words]))
    assert named in str(caught.value) and str(caught.value).startswith("error: ") and str(caught.value).endswith(".")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_told_before_anything_is_loaded(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge", None)  # as if it were not installed
    monkeypatch.setattr("evaluating.evaluator.load", None)
    with pytest.raises(SystemExit, match="needs the package rouge; install it"):
        recipe.main(*recipe.parse_args(["--config", str(config)]))


def test_samples_and_their_means_agree(config: Path) -> None:
    _, folder = run(config, "tasks={infinitebench/math_find: {new_tokens: 4}, longbench/trec: {new_tokens: 4}}")
    samples = read(folder)
    for result in summary_of(folder)["results"]:
        scores = [s["score"] for s in samples if (s["task"], s["method"]) == (result["task"], result["method"])]
        assert result["mean"] == pytest.approx(math.fsum(scores) / len(scores))
        assert ("wilson_95" in result) == (result["task"] == "infinitebench/math_find")


def test_all_options_are_read_without_the_files() -> None:
    file = str(ROOT / "recipes" / "evaluations" / "longbench.yaml")
    evaluation: Any = Evaluation.load(file, ["tasks.longbench/lcc.samples=3"])
    assert evaluation.tasks["longbench/lcc"].samples == 3 and evaluation.tasks["longbench/qasper"].samples is None
    assert set(evaluation.tasks) == {name for name in RECORD_TASKS if name.startswith("longbench/")}
    evaluation = Evaluation.load(str(ROOT / "recipes" / "evaluations" / "infinitebench.yaml"))
    assert {name for name in evaluation.tasks if "/" in name} == {
        n for n in RECORD_TASKS if n.startswith("infinitebench/")
    }
