"""LongPPL: which tokens are key tokens, and that they alone are scored; and perplexity of every token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model
from evaluating.key_tokens import covered
from refusal import refusal
from torch.nn.functional import cross_entropy
from training import document

from focus_peft.decoding.cache import FocusCache
from focus_peft.tasks import Adapter, FullAttention, KeyTokens, LocalWindow, LongPerplexityTask, PerplexityTask


def loss(model: Any, before: list[int], label: int) -> float:
    with torch.no_grad():
        return float(cross_entropy(model(torch.tensor([before])).logits[0, -1:].float(), torch.tensor([label])))


@pytest.mark.parametrize(("tokens", "short", "stride"), [(60, 20, 8), (61, 20, 8), (30, 29, 8), (50, 10, 25)])
def test_key_tokens_are_those_that_need_the_long_context_and_are_likely_with_it(
    tokens: int, short: int, stride: int
) -> None:
    model = make_tiny_model()
    ids, alpha, beta = document(tokens), 0.1, -6.0  # a random model is never sure
    expected = []
    for label in range(short, tokens):
        start = (label - short) // stride * stride
        long, near = loss(model, ids[:label], ids[label]), loss(model, ids[start:label], ids[label])
        assert short <= label - start < short + stride
        if near - long > alpha and -long > beta:
            expected.append(label)
    assert KeyTokens(model, short, stride, alpha, beta)(ids) == expected
    assert 0 < len(expected) < tokens - short or tokens == 30
    assert KeyTokens(model, short, stride, alpha=100.0)(ids) == []


def test_longppl_is_the_perplexity_of_the_key_tokens_of_all_texts() -> None:
    model = make_focus_model()
    documents = [document(70), document(90, 1)]
    find = KeyTokens(model.get_base_model(), short=20, stride=8, alpha=0.5, beta=-5.0)
    task = LongPerplexityTask(60, samples=3, short=20)
    for method in (Adapter(model), LocalWindow(model)):
        losses = []
        for ids in task.texts(documents):
            every = method.losses(ids, 40)
            losses += [float(every[key - 20]) for key in find(ids)]
        found = task(method, documents, find)
        assert found["labels"] == len(losses) > 3
        assert found["cross_entropy"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-6)
        assert found["perplexity"] == math.exp(found["cross_entropy"])
    with refusal("`samples`", "3"):
        task(Adapter(model), documents, KeyTokens(model.get_base_model(), short=20, alpha=100.0))


def test_the_evaluator_is_the_base_model_and_adapters_do_not_change_it() -> None:
    model = make_focus_model()
    ids = document(60)
    found = KeyTokens(model.get_base_model(), 20, 8, 0.5, -5.0)(ids)
    assert found == KeyTokens(make_tiny_model(), 20, 8, 0.5, -5.0)(ids)


def test_key_tokens_of_another_tokenizer_cover_what_lies_within_their_characters() -> None:
    offsets = [(0, 2), (2, 3), (3, 6), (6, 6), (6, 8), (8, 12)]
    assert covered(offsets, [(0, 3)]) == [0, 1]
    assert covered(offsets, [(2, 4), (4, 8)]) == [1, 2, 4], "neighbors are one span"
    assert covered(offsets, [(2, 4), (5, 8)]) == [1, 4]
    assert covered(offsets, []) == [] and covered(offsets, [(7, 9)]) == []
    assert covered(offsets, [(0, 12)]) == [0, 1, 2, 4, 5]


def test_what_the_evaluator_cannot_read_is_refused() -> None:
    find = KeyTokens(make_tiny_model(), short=20)  # 128 positions
    assert find.refusal(128) is None
    with refusal("129", "128", "`evaluator`"):
        find(document(129))
    with refusal("`short`", "20"):
        find(document(20))
    with refusal("`short`", "0"):
        KeyTokens(make_tiny_model(), short=0)
    with refusal("`tokens`", "4096"):
        LongPerplexityTask(4096)


def test_every_token_is_scored_once_from_what_stands_before_it() -> None:
    model = make_focus_model()  # chunks of 8, a window of 8
    tuner: Any = model.base_model
    documents = [document(50)]
    task = PerplexityTask(40, samples=1, labels=None)
    (ids,) = task.texts(documents)
    assert task.label_count == 39
    cache = FocusCache(tuner.reader, tuner.settings(), 1)
    expected = []
    for label in range(1, 40):
        logits: Any = cache.read([ids[label - 1 : label]], 1)
        expected.append(cross_entropy(logits[0].float(), torch.tensor([ids[label]])))
    torch.testing.assert_close(task.losses(Adapter(model), ids), torch.stack(expected), rtol=0, atol=1e-6)
    every = FullAttention(model).losses(ids, 39)
    # the window spills before the label 16
    torch.testing.assert_close(task.losses(LocalWindow(model), ids)[:15], every[:15], rtol=0, atol=1e-6)
    torch.testing.assert_close(task.losses(Adapter(model), ids)[:15], every[:15], rtol=0, atol=1e-6)
    assert not torch.allclose(task.losses(LocalWindow(model), ids)[15:], every[15:])
    assert task(Adapter(model), documents)["cross_entropy"] == pytest.approx(float(torch.stack(expected).mean()))


@pytest.mark.parametrize("labels", [129, 169])
def test_many_labels_have_the_losses_of_one_pass(labels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focus_peft.tasks.methods.adapter.AT_ONCE", 64)
    model = make_focus_model(chunk_size=16, local_size=16, prompt_size=4)
    ids = document(170)
    with torch.no_grad():
        output: Any = model(torch.tensor([ids[:-1]]), logits_to_keep=labels)
    expected = cross_entropy(output.logits[0].float(), torch.tensor(ids[-labels:]), reduction="none")
    torch.testing.assert_close(Adapter(model).losses(ids, labels), expected, rtol=0, atol=1e-6)
    with refusal("`chunk_size`", "128"):
        Adapter(model).losses(document(3000), 150)
