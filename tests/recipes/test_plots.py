"""`recipes/plot.py`: what is drawn is what was measured, and lines can be told apart without colors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import each_decoding
from refusal import refusal


pytest.importorskip("matplotlib")
pytest.importorskip("datasets")

import matplotlib
import plot
from evaluating.configuration import Evaluation
from evaluating.evaluator import load
from lib.byte_tokenizer import byte_tokenizer
from plots.ablations import interval
from plots.attention_shares import chunks_with
from plots.drawing import styles
from plots.evaluation import at_shared_places, samples
from plots.training import scalars
from small_evaluation import MODEL, write_config

from focus_peft.hub.run_folder import set_aside
from focus_peft.tasks.passkey import INFORMATION, passkey_prompt


@pytest.fixture(autouse=True)
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # words stay words


@pytest.fixture
def config(tmp_path: Path) -> Path:
    model = {"random": {**MODEL, "num_hidden_layers": 2}}
    return write_config(tmp_path, model=model, tasks={"passkey": {"lengths": [400]}})


@each_decoding
def test_the_attention_that_is_drawn_is_that_of_the_tokens_that_generate_answers(config: Path, decoding: str) -> None:
    output = config.parent / "attention.svg"
    words = ["attention", "--config", str(config), "--tokens", "500", "--depth", "0.4", "--new-tokens", "3"]
    plot.main([*words, "--output", str(output), f"focus.decoding={decoding}"])
    found = json.loads(output.with_suffix(".json").read_text())
    evaluation = Evaluation.load(str(config), [f"focus.decoding={decoding}"])
    model, tokenizer = load(evaluation)
    made = passkey_prompt(tokenizer, 500, 0.4, 0)
    assert (found["tokens"], found["decoding"]) == (made.ids.shape[1], decoding)
    wanted = model.generate(input_ids=made.ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert [entry["id"] for entry in found["answer_tokens"]] == wanted[0, made.ids.shape[1] :].tolist()
    (first,) = model.chunk_attention(made.ids)
    assert torch.equal(torch.tensor(found["answer_tokens"][0]["attention"]), first)
    chunks = math.ceil((made.ids.shape[1] - 64) / 64)
    for entry in found["answer_tokens"]:
        assert len(entry["attention"]) == chunks and 0 < sum(entry["attention"]) < 1
    place = tokenizer.decode(made.ids[0]).index(INFORMATION.format(key=made.key))
    assert found["chunks_with_the_fact"][0] == place // 64
    svg = output.read_text()
    assert "▲ holds the fact" in svg and f"{made.ids.shape[1]:,} tokens" in svg


def test_the_attention_from_a_question_about_a_document(config: Path, tmp_path: Path) -> None:
    book, output = tmp_path / "book.txt", tmp_path / "attention.png"
    book.write_text("It was a dark night. " * 12 + "The key is 41. " + "It was a dark night. " * 12)
    words = ["attention", "--config", str(config), "--document", str(book), "--output", str(output)]
    short = tmp_path / "short.txt"
    short.write_text("It was.")
    plot.main([*words, "--question", "Which key?", "--fact", "The key is 41", "--new-tokens", "1"])
    found = json.loads(output.with_suffix(".json").read_text())
    assert len(found["answer_tokens"]) == 1 and found["chunks_with_the_fact"] == [252 // 64, 264 // 64]
    assert output.read_bytes().startswith(b"\x89PNG")
    for more, named in (
        (["--question", "Which?", "--fact", "dark"], "24 times"),
        (["--fact", "dark"], "`--question`"),
        (["--question", "Which?", "focus.local_size=600"], "error: `local_size`"),
        (["--question", "Which?", "--document", str(short)], "no chunks"),
        (["--question", "Which?", "--document", str(tmp_path / "none.txt")], "none.txt"),
    ):
        with pytest.raises(SystemExit, match=named):
            plot.main([*words, *more])


def test_a_length_that_is_no_number_is_told_as_the_option(config: Path) -> None:
    with pytest.raises(SystemExit, match="error: `--tokens` .* 'abc'"):
        plot.main(["attention", "--config", str(config), "--tokens", "abc", "--output", str(config.parent / "a.svg")])


@pytest.mark.parametrize("place", [0, 3, 7, 8, 14, 15, 16, 30, 36, 40, 42])
def test_the_chunks_that_hold_a_fact_are_those_that_its_tokens_stand_in(place: int) -> None:
    fact = "0123456789"
    text = "x" * place + fact + "x" * (52 - place)
    ids = byte_tokenizer()(text)["input_ids"]
    assert len(ids) == 62, "a token for each letter"
    expected = sorted({position // 8 for position in range(place, place + 10) if position < 42})  # the last has 2
    assert chunks_with(byte_tokenizer(), ids, 42, 8, fact) == expected


def test_a_fact_that_does_not_stand_once_is_refused() -> None:
    ids = byte_tokenizer()("one two one")["input_ids"]
    for fact, times in (("one", "2 times"), ("three", "0 times")):
        with refusal("`fact`", repr(fact), times):
            chunks_with(byte_tokenizer(), ids, 8, 4, fact)


def test_lines_differ_in_more_than_color() -> None:
    looks = [(style["linestyle"], style["marker"]) for style in styles(range(35)).values()]
    assert len(set(looks)) == 35


def test_every_way_of_the_scaling_benchmark_is_drawn(tmp_path: Path) -> None:
    def way(tokens: int, seconds: float | None) -> dict[str, Any]:
        return {"tokens": tokens, "prefill_seconds": 9.0, "seconds_per_token": seconds, "peak_memory_gb": 2.0}

    ways = {"focus, 8,192 tokens": way(8192, 1.0), "focus, 16,384 tokens": way(16384, 2.0)}
    ways |= {"one by one, 8,192 tokens": way(8192, None), "full attention, 8,192 tokens": way(8192, None)}
    (tmp_path / "scaling.json").write_text(json.dumps({"ways": ways}))
    words = ["scaling", "--results", str(tmp_path / "scaling.json"), "--output", str(tmp_path / "scaling.svg")]
    plot.main(words)
    svg = (tmp_path / "scaling.svg").read_text()
    for text in (
        "chunks in parallel",
        "one chunk at a time",
        "full attention",
        "peak memory",
        "per token",
        "8K",
        "16K",
    ):
        assert text in svg
    with pytest.raises(SystemExit):
        plot.main([*words, "color=red"])


def test_samples_are_drawn_whatever_breaks_the_lines_of_their_answers(tmp_path: Path) -> None:
    found = [{"task": "vt", "prediction": f"{number}\u2028\x85"} for number in range(3)]
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in found)
    (tmp_path / "samples.jsonl").write_text(lines + '{"task": "v', encoding="utf-8")  # the last is being written
    assert samples(tmp_path, "vt") == found


def test_the_losses_of_a_run_are_drawn_as_far_as_they_were_logged(tmp_path: Path) -> None:
    boards = pytest.importorskip("torch.utils.tensorboard")
    with boards.SummaryWriter(tmp_path) as writer:
        for tag in ("train/loss_continuation", "train/loss_repetition", "eval/loss_continuation"):
            writer.add_scalar(tag, 2.5, 1)
    words = ["curves", "--logdir", str(tmp_path), "--output", str(tmp_path / "curves.svg")]
    plot.main(words)
    svg = (tmp_path / "curves.svg").read_text()
    assert all(f">{text}<" in svg for text in ("continuation", "adapter, training steps", "adapter, held out"))
    assert "local window alone" not in svg
    with pytest.raises(SystemExit, match="`--logdir`"):
        plot.main([*words[:2], str(tmp_path / "none"), *words[3:]])


def test_the_losses_of_a_run_that_was_set_aside_are_not_drawn(tmp_path: Path) -> None:
    boards = pytest.importorskip("torch.utils.tensorboard")
    (tmp_path / "recipe.yaml").write_text("model: {}")
    for steps in (3, 1):
        aside = set_aside(tmp_path)
        (tmp_path / "recipe.yaml").write_text("model: {}")
        with boards.SummaryWriter(tmp_path / "runs" / f"of {steps} steps") as writer:
            for step in range(steps):
                writer.add_scalar("train/loss_continuation", 2.5, step)
    assert aside is not None and scalars(tmp_path)["train/loss_continuation"][0] == [0]
    assert scalars(aside)["train/loss_continuation"][0] == [0, 1, 2], "with all that is of it"


def test_a_study_is_drawn_with_intervals(tmp_path: Path) -> None:
    def result(task: str, metric: str, mean: float, **more: Any) -> dict[str, Any]:
        return {"task": task, "method": "adapter", "length": 4096, "metric": metric, "mean": mean, **more}

    loss = result("perplexity", "cross_entropy", 2.0, standard_error=0.1)
    right = result("passkey", "accuracy", 0.5, wilson_95=[0.2, 0.8])
    assert interval(right) == (0.5, 0.2, 0.8)
    rounded = [0.84, 0.9999999999999999]  # as Wilson's is for 20 of 20
    assert interval(result("passkey", "accuracy", 1.0, wilson_95=rounded)) == (1.0, 0.84, 1.0)
    assert interval(loss) == pytest.approx([math.exp(2), math.exp(2 - 0.196), math.exp(2 + 0.196)], rel=1e-4)
    assert interval(result("vt", "score", 0.5)) == (0.5, 0.5, 0.5)
    entries = [{"study": "chunk size", "variant": name, "results": [loss, right]} for name in ("256", "512")]
    entries[0]["results"] = [loss, right, {**result("longbench/trec", "classification", 0.5), "length": None}]
    entries.append({"study": "chunk size", "variant": "1024", "failed": "it did"})
    (tmp_path / "results.json").write_text(json.dumps({"variants": entries}))
    words = ["ablations", "--results", str(tmp_path / "results.json"), "--output", str(tmp_path / "study.svg")]
    plot.main([*words, "--study", "chunk size"])
    svg = (tmp_path / "study.svg").read_text()
    assert all(
        text in svg
        for text in (
            ">256<",
            ">512<",
            "adapter, 4K tokens",
            "adapter, whole records",
            "perplexity",
            "passkey",
            "accuracy",
        )
    )
    assert ">1024<" not in svg
    with pytest.raises(SystemExit, match="results of chunk size"):
        plot.main([*words, "--study", "losses"])


def test_perplexity_is_drawn_at_the_places_that_all_methods_and_lengths_share(tmp_path: Path) -> None:
    def read(method: str, length: int, *numbers: int) -> list[dict[str, Any]]:
        common = {"task": "perplexity", "method": method, "length": length, "metric": "cross_entropy"}
        return [{**common, "number": number, "score": 2.0 + number} for number in numbers]

    whole, half = read("adapter", 2048, 0, 1, 2), read("adapter", 4096, 2, 0)
    window = read("local_window", 2048, 0, 2, 3)
    found = [*whole, *half, *window]
    kept = at_shared_places(found)
    assert [(sample["method"], sample["length"], sample["number"]) for sample in kept] == [
        ("adapter", 2048, 0),
        ("adapter", 2048, 2),
        ("adapter", 4096, 2),
        ("adapter", 4096, 0),
        ("local_window", 2048, 0),
        ("local_window", 2048, 2),
    ]
    words = ["perplexity", "--results", str(tmp_path), "--output", str(tmp_path / "perplexity.svg")]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in found))
    plot.main(words)
    assert ">perplexity of the last tokens, 2 places<" in (tmp_path / "perplexity.svg").read_text()
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(json.dumps(read("full_attention", 2048, 4)[0]) + "\n")
    with pytest.raises(SystemExit, match="no place in `--results`"):
        plot.main(words)
    plot.main([*words, "--methods", "local_window,adapter"])
    assert "full_attention" not in (tmp_path / "perplexity.svg").read_text()
    with pytest.raises(
        SystemExit, match="names 'bm25', but there are samples of adapter, local_window, full_attention"
    ):
        plot.main([*words, "--methods", "adapter,bm25"])
