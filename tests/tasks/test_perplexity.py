"""Perplexity at a length: which texts and labels are scored, and that each way to read gives what it should."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make_focus_model
from refusal import refusal
from torch.nn.functional import cross_entropy
from training import document

from focus_peft.decoding.cache import FocusCache
from focus_peft.passes.settings import WindowSizes
from focus_peft.tasks import Adapter, FullAttention, LocalWindow, PerplexityTask
from focus_peft.tasks.methods.label_blocks import label_blocks
from focus_peft.tasks.perplexity import text_windows


@pytest.mark.parametrize(("tokens", "labels"), [(40, 5), (40, 12), (40, 30), (9, 8), (12, 9), (60, 59)])
def test_label_blocks_are_the_windows_that_the_adapter_decodes_with(tokens: int, labels: int) -> None:
    model = make_focus_model()  # chunks of 8, a window of 8
    tuner: Any = model.base_model
    ids = document(tokens)
    settings = tuner.settings()
    blocks = label_blocks(tokens, labels, settings.sizes)
    assert [label for block in blocks for label in range(block.first, block.end)] == list(
        range(tokens - labels, tokens)
    )
    starts = {label: block.start for block in blocks for label in range(block.first, block.end)}
    cache = FocusCache(tuner.reader, settings, 1)
    for label in range(tokens - labels, tokens):
        cache.read([ids[: tokens - labels] if label == tokens - labels else ids[label - 1 : label]], 1)
        assert cache.streams[0].start == starts[label], label


def test_windows_are_spread_evenly_over_long_documents() -> None:
    documents = [document(20), document(300, 1), document(120, 2)]
    windows = text_windows(documents, longest=100, samples=74, seed=3)
    counts = [sum(window.document == number for window in windows) for number in range(3)]
    assert counts == [0, 67, 7]  # 201 and 21 places
    assert all(100 <= window.end <= len(documents[window.document]) for window in windows)
    ends = [window.end for window in windows if window.document == 1]
    assert ends == sorted(ends) and all(later - before < 6 for before, later in zip(ends, ends[1:]))
    assert windows == text_windows(documents, 100, 74, seed=3) != text_windows(documents, 100, 74, seed=4)


def test_tasks_of_every_length_score_the_same_labels() -> None:
    documents = [document(200), document(300, 1)]
    tasks = [PerplexityTask(tokens, samples=4, labels=10, longest=90) for tokens in (30, 60, 90)]
    texts = [task.texts(documents) for task in tasks]
    for short, middle, long in zip(*texts):
        assert (len(short), len(middle), len(long)) == (30, 60, 90)
        assert long[-60:] == middle and middle[-30:] == short


@pytest.mark.parametrize("add_bos", [True, False])
def test_truncation_reads_what_the_local_window_holds_and_nothing_else(add_bos: bool) -> None:
    model = make_focus_model(add_bos=add_bos)
    base: Any = model.get_base_model()
    ids, labels = document(40), 20
    settings: Any = model.base_model.settings()  # type: ignore[operator]
    expected = []
    for block in label_blocks(40, labels, settings.sizes):
        for label in range(block.first, block.end):
            read = ([1] if add_bos else []) + ids[block.start : label]
            logits = base(torch.tensor([read])).logits[0, -1:]
            expected.append(cross_entropy(logits.float(), torch.tensor([ids[label]])))
    found = LocalWindow(model).losses(ids, labels)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)
    changed = [(token + 5) % 100 + 3 for token in ids[:12]] + ids[12:]  # the first window starts at 12
    assert torch.equal(LocalWindow(model).losses(changed, labels), found)
    assert not torch.equal(Adapter(model).losses(changed, labels), Adapter(model).losses(ids, labels))


def test_full_attention_is_the_base_model() -> None:
    model = make_focus_model()
    base: Any = model.get_base_model()
    ids = document(60)
    logits = base(torch.tensor([ids])).logits[0]
    expected = cross_entropy(logits[39:59].float(), torch.tensor(ids[40:]), reduction="none")
    torch.testing.assert_close(FullAttention(model).losses(ids, 20), expected, rtol=0, atol=1e-6)
    assert FullAttention(model).refusal(128) is None
    assert "129 tokens" in str(FullAttention(model).refusal(129)) and LocalWindow(model).refusal(10**6) is None
    assert Adapter(model).refusal(900) is None and "`chunk_size`" in str(Adapter(model).refusal(1000))
    assert Adapter(model).refusal(905, new_tokens=27) is None  # windows that spill early
    assert "28 new tokens" in str(Adapter(model).refusal(905, new_tokens=28))


def test_answers_are_those_of_generate() -> None:
    model = make_focus_model()
    base: Any = model.get_base_model()
    ids = document(40)
    ours: Any = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    assert Adapter(model).generate(ids, 6) == ours[0, 40:].tolist()
    window = base.generate(torch.tensor([[1, *ids[-8:]]]), max_new_tokens=6, do_sample=False)
    assert LocalWindow(model).generate(ids, 6) == window[0, 9:].tolist()
    full = base.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    assert FullAttention(model).generate(ids, 6) == full[0, 40:].tolist()


def test_overrides_reach_the_adapter() -> None:
    model = make_focus_model()
    ids = document(40)
    with torch.no_grad():
        output: Any = model(torch.tensor([ids[:-1]]), logits_to_keep=4, prompt_size=1)
    expected = cross_entropy(output.logits[0].float(), torch.tensor(ids[-4:]), reduction="none")
    assert torch.equal(Adapter(model, prompt_size=1).losses(ids, 4), expected)


def test_perplexity_is_the_exponential_of_the_mean_over_all_labels() -> None:
    model = make_focus_model()
    documents = [document(70), document(50, 1)]
    task = PerplexityTask(tokens=40, samples=3, labels=8)
    method = LocalWindow(model)
    every = torch.cat([method.losses(ids, 8) for ids in task.texts(documents)])
    found = task(method, documents)
    assert found["cross_entropy"] == pytest.approx(float(every.mean()), abs=1e-6)
    assert found["perplexity"] == math.exp(found["cross_entropy"])


def test_what_cannot_be_scored_is_refused() -> None:
    model = make_focus_model()
    with refusal("`labels`", "40", model=model):
        Adapter(model).losses(document(40), 40)
    with refusal("`ids`", "500", model=model):
        LocalWindow(model).losses([3, 500, 4], 1)
    with refusal("`ids`", "empty", model=model):
        FullAttention(model).generate([], 1)
    with refusal("`longest`", "100", "50"):
        text_windows([document(50)], 100, 1)
    with refusal("`samples`", "11"):
        text_windows([document(50)], 41, 11)
    with refusal("`longest`", "30"):
        PerplexityTask(tokens=40, longest=30, labels=4)
    with refusal("`labels`", "256"):
        PerplexityTask(tokens=40)
    assert label_blocks(5, 2, WindowSizes(8, 8, 4, 128))[0].start == 0
