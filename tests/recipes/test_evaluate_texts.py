"""`recipes/evaluate.py` on given texts: every token, and key tokens that the base model or another evaluator tells."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from evaluating.configuration import Evaluation
from evaluating.evaluator import Evaluator
from refusal import refusal
from small_evaluation import MODEL, config, read, run, summary_of

from focus_peft.tasks import FullAttention, KeyTokens, LongPerplexityTask, PerplexityTask


__all__ = ["config"]  # a fixture
# random weights are sure of nothing, and hardly need a distant text
TASKS = "tasks={perplexity_all: {samples: 2}, longppl: {samples: 3, short: 64, stride: 32, alpha: 0, beta: -9}}"


def test_every_token_and_key_tokens_are_scored(config: Path) -> None:
    done, folder = run(config, TASKS)
    assert done
    samples = read(folder)
    evaluator = Evaluator(Evaluation.load(str(config), [TASKS]), "small", "command")
    assert evaluator.folder == folder
    documents, method = evaluator.documents, FullAttention(evaluator.model)
    for sample in samples:
        if sample["method"] != "full_attention":
            continue
        if sample["task"] == "perplexity_all":
            task = PerplexityTask(400, 2, None, 600)
            losses = method.losses(task.text(documents, sample["number"]), 399)
        else:
            task = LongPerplexityTask(400, 3, None, 600, short=64)
            ids = task.text(documents, sample["number"])
            keys = KeyTokens(evaluator.model.get_base_model(), 64, 32, alpha=0, beta=-9)(ids)
            assert keys
            losses = method.losses(ids, 336)[[key - 64 for key in keys]]
        assert sample["labels"] == len(losses)
        assert sample["score"] == (pytest.approx(float(losses.mean()), rel=1e-5) if len(losses) else None)
    summary = summary_of(folder)
    for result in summary["results"]:
        own = [
            s for s in samples if (s["task"], s["method"], s["length"]) == tuple(result.values())[:3] and s["labels"]
        ]
        total = sum(s["labels"] for s in own)
        assert result["labels"] == total
        assert result["mean"] == pytest.approx(math.fsum(s["score"] * s["labels"] for s in own) / total)
    # full attention and the evaluator read 512 tokens at most
    reasons = {(entry["task"], entry["method"]): entry["reason"] for entry in summary["not_run"]}
    assert "`evaluator`" in reasons["longppl", "adapter"] and "512" in reasons["longppl", "adapter"]
    assert ("perplexity_all", "adapter") not in reasons and "600" in reasons["perplexity_all", "full_attention"]


def test_an_evaluator_with_more_positions_tells_key_tokens_of_longer_texts(config: Path) -> None:
    tasks = "tasks={longppl: {samples: 2, short: 64, stride: 32, alpha: 0, beta: -9, lengths: [600]}}"
    model = {"random": {**MODEL, "max_position_embeddings": 1024}}
    words = [tasks, "methods=[adapter]", f"evaluator={json.dumps(model)}"]
    evaluator = Evaluator(Evaluation.load(str(config), words), "small", "command")
    task = LongPerplexityTask(600, 2, None, 600, short=64)
    documents = evaluator.documents
    for number in (0, 1):
        keys = evaluator.keys(task, number, documents, evaluator.texts, evaluator.tokenizer)
        # both read bytes, so that what lies within the characters of a key token is that token
        assert keys == evaluator.keys.find(task.text(documents, number)) and keys
    done, folder = run(config, *words)
    assert done and len(read(folder)) == 2
    assert all(sample["labels"] > 0 for sample in read(folder))
    assert "weights" in json.loads((folder / "config.json").read_text())["evaluator"]


def test_evaluations_without_key_tokens_keep_their_folder(config: Path) -> None:
    identity = Evaluation.load(str(config)).identity()
    assert "evaluator" not in identity and "output_dir" not in identity
    assert all(not {"short", "stride", "alpha", "beta"} & set(task) for task in identity["tasks"].values())


def test_lengths_without_a_label_are_refused(config: Path) -> None:
    with refusal("`tokens`", "400", "4096"):
        Evaluation.load(str(config), ["tasks={longppl: {}}"])
