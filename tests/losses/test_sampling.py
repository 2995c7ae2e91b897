"""Spans are drawn by pure functions: what holds for one seed holds for many, so these tests draw thousands."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from conftest import make_tiny_model

from focus_peft import FocusConfig
from focus_peft.frozen.facts import ModelFacts
from focus_peft.losses.sampling import CHUNK_SIZES, LEAST_LOCAL, Sample, Span, draw_int, draw_sample
from focus_peft.passes.settings import Settings


LENGTHS = (3, 4, 5, 6, 9, 17, 40, 64, 129, 300, 1000)
SIZES = [(8, 8, 4), (16, 5, 1), (64, 64, 32), (300, 100, 8), (4096, 512, 32)]  # chunk, local, labels
LOSSES = ("sum", "draw")


@functools.cache
def facts() -> ModelFacts:
    """Of a model with room for every size."""
    return ModelFacts.of(make_tiny_model(max_position_embeddings=40000))


@functools.cache
def settings_for(**fields: Any) -> Settings:
    config = FocusConfig(**{"chunk_size": 8, "local_size": 8, "label_size": 4, **fields})
    return Settings.of(config, facts())


def draw(
    labeled: Sequence[bool] | int, seed: int = 0, generator: torch.Generator | None = None, **fields: Any
) -> Sample | None:
    """`draw_sample` with small sizes; an integer stands for so many labeled tokens."""
    labeled = [True] * labeled if isinstance(labeled, int) else list(labeled)
    return draw_sample(labeled, settings_for(**fields), generator or torch.Generator().manual_seed(seed))


def scattered(length: int, seed: int, share: float = 0.2) -> list[bool]:
    """A document in which every token is a label with the odds of `share`."""
    return (torch.rand(length, generator=torch.Generator().manual_seed(seed)) < share).tolist()


def every_sample(share: float | None = None, **fields: Any) -> Iterator[tuple[list[bool], dict[str, int], Sample]]:
    """(labeled, sizes, sample) over many lengths, sizes and seeds; where nothing could be drawn, nothing."""
    for length, (chunk, local, labels), seed in itertools.product(LENGTHS, SIZES, range(6)):
        sizes = {"chunk_size": chunk, "local_size": local, "label_size": labels}
        labeled = [True] * length if share is None else scattered(length, seed, share)
        sample = draw(labeled, seed, **sizes, **fields)
        if sample is not None:
            yield labeled, sizes, sample


def spans(sample: Sample) -> list[Span]:
    return [span for span in (sample.continuation, sample.repetition) if span is not None]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"share": 0.2},
        {"repetition_weight": 0.0},
        {"continuation_weight": 0.0},
        {"loss": "draw"},
        {"loss": "draw", "share": 0.1, "continuation_weight": 3.0},
    ],
    ids=["all", "few labels", "continuation", "repetition", "draw", "draw few labels"],
)
def test_every_sample_has_spans_of_the_right_sizes_in_the_right_places(fields: dict[str, Any]) -> None:
    count = 0
    for labeled, sizes, sample in every_sample(**fields):
        count += 1
        continuation, repetition = sample.continuation, sample.repetition
        assert spans(sample) and 1 <= sample.memory <= len(labeled)
        for span in spans(sample):
            assert span.local >= 1 and span.labels >= 1
            assert 0 <= span.start < span.first_label < span.end <= len(labeled)
            assert labeled[span.first_label] and labeled[span.end - 1]
            room = len(labeled) - 1 if span is continuation else sample.memory
            most = min(sizes["label_size"], max(1, room // 2))
            assert span.labels == most if all(labeled) else span.labels <= most
        if continuation is None:  # nothing follows, so the whole document is the memory
            assert sample.memory == len(labeled)
        else:  # at most half of what precedes the labels is local, so that the memory is long
            most = min(sizes["local_size"], max(1, (continuation.first_label - 1) // 2))
            assert min(LEAST_LOCAL, most) <= continuation.local <= most
            assert sample.memory == continuation.start >= continuation.local
        if repetition is not None:  # or all that precedes them
            most = min(sizes["local_size"], repetition.first_label)
            assert min(LEAST_LOCAL, most) <= repetition.local <= most
            assert repetition.end <= sample.memory
    assert count > 100


def test_a_short_answer_is_drawn_from_its_start() -> None:
    """Not some of its last tokens only, with the others given away by the local window."""
    labeled = [False] * 80 + [True] * 6
    drawn = [draw(labeled, seed, label_size=32).continuation for seed in range(60)]
    assert {span.first_label for span in drawn} == {80}
    assert {span.labels for span in drawn} == {3, 4, 5, 6}
    both = [False] * 40 + [True] * 3 + [False] * 50 + [True] * 12 + [False] * 15
    assert {draw(both, seed, label_size=16).continuation.first_label for seed in range(200)} == set(range(93, 100))


@pytest.mark.parametrize("sizes_given", [{"local_size": 40}, {"local_size": 8, "train_local_size": 40}])
def test_local_sizes_are_drawn_up_to_the_window(sizes_given: dict[str, int]) -> None:
    drawn = [draw(1000, seed, **sizes_given) for seed in range(300)]
    for kind in ("continuation", "repetition"):
        sizes = {span.local for sample in drawn if (span := getattr(sample, kind)).first_label > 100}
        assert sizes == set(range(LEAST_LOCAL, 41))


def test_chunk_sizes_come_from_the_list_up_to_the_chunk_size() -> None:
    for limit, expected in [
        (8, {8}),
        (63, {63}),
        (64, {64}),
        (300, {64, 128, 256}),
        (2048, set(CHUNK_SIZES)),
        (9999, set(CHUNK_SIZES)),
    ]:
        counts = Counter(draw(100, seed, chunk_size=limit).chunk_size for seed in range(400))
        assert set(counts) == expected
        assert min(counts.values()) > 0.6 * 400 / len(expected)  # about evenly
    assert CHUNK_SIZES == (64, 128, 256, 512, 1024, 2048)


def test_chunk_sizes_are_drawn_from_the_smallest_that_training_wants() -> None:
    for least, limit, expected in [(128, 512, {128, 256, 512}), (300, 512, {512}), (90, 100, {100}), (64, 64, {64})]:
        fields = {"chunk_size": limit, "train_min_chunk_size": least}
        assert {draw(100, seed, **fields).chunk_size for seed in range(100)} == expected


def test_the_continuation_prefers_the_second_half() -> None:
    for length in (40, 100, 301):
        starts = [draw(length, seed).continuation.first_label for seed in range(200)]
        assert min(starts) >= length // 2
        assert len(set(starts)) > 10
    early = [True] * 30 + [False] * 70
    assert all(draw(early, seed).continuation.first_label < 30 for seed in range(50))


def test_repetitions_come_from_everywhere_in_the_memory() -> None:
    ends = Counter(
        sample.repetition.first_label * 4 // (sample.memory + 1) for seed in range(400) if (sample := draw(400, seed))
    )
    assert set(ends) == {0, 1, 2, 3}
    assert min(ends.values()) > 50


@pytest.mark.parametrize("place", [2, 3, 50, 98, 99])
def test_a_single_label_is_found_wherever_it_stands(place: int) -> None:
    labeled = [index == place for index in range(100)]
    for seed in range(20):
        sample = draw(labeled, seed)
        assert sample is not None
        span = sample.continuation
        assert span.first_label <= place < span.end
        assert sample.repetition is None  # the memory before the continuation holds no label


@pytest.mark.parametrize(
    "labeled",
    [
        [],
        [True],
        [True, True],  # no room for memory, local window and label
        [False] * 100,
        [True] + [False] * 99,  # nothing stands before the label
        [True, True] + [False] * 99,  # a memory, but no local window before the label
    ],
)
def test_nothing_is_drawn_where_nothing_fits(labeled: list[bool]) -> None:
    for seed in range(10):
        for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)):
            for loss in LOSSES:
                fields = {"continuation_weight": weights[0], "repetition_weight": weights[1], "loss": loss}
                assert draw(labeled, seed, **fields) is None


def test_three_tokens_are_enough_for_a_continuation() -> None:
    sample = draw(3)
    assert sample.memory == 1
    assert sample.continuation == Span(start=1, local=1, labels=1)
    assert sample.repetition is None


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.1, 0.4)])
def test_draw_draws_each_loss_with_the_odds_of_its_weight(weights: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    total, continuations = 2000, 0
    for _ in range(total):
        sample = draw(
            200,
            loss="draw",
            continuation_weight=weights[0],
            repetition_weight=weights[1],
            generator=generator,
        )
        assert len(spans(sample)) == 1
        continuations += sample.continuation is not None
    odds = weights[0] / sum(weights)
    # five standard deviations
    assert abs(continuations / total - odds) < 5 * (odds * (1 - odds) / total) ** 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_weight_zero_is_never_drawn(loss: str) -> None:
    for seed in range(100):
        without_repetition = draw(200, seed, loss=loss, repetition_weight=0.0)
        assert without_repetition.continuation is not None and without_repetition.repetition is None
        without_continuation = draw(200, seed, loss=loss, continuation_weight=0.0)
        assert without_continuation.continuation is None and without_continuation.repetition is not None


def test_the_sum_draws_both_losses() -> None:
    for seed in range(100):
        assert len(spans(draw(200, seed))) == 2


def test_a_sample_depends_on_its_arguments_and_seed_alone() -> None:
    labeled = scattered(300, seed=0)
    before = list(labeled)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    samples = [draw(labeled, seed) for seed in range(30)]
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    torch.manual_seed(2)
    assert samples == [draw(labeled, seed) for seed in range(30)]
    assert labeled == before
    assert len(set(samples)) > 20


def test_a_drawn_integer_may_be_either_end() -> None:
    generator = torch.Generator().manual_seed(0)
    assert {draw_int(2, 4, generator) for _ in range(100)} == {2, 3, 4}
    assert draw_int(7, 7, generator) == 7
