"""Distractors: in the loss they are chunks like any others; in a run they are read once, from the data that is trained
on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import each_decoding, make_focus_model, make_tiny_model, random_ids
from families import IS_OLD
from refusal import refusal
from runs import FOCUS, adapter, trainer_of
from training import assert_equal_to, assert_same_gradients, document, gradients_of

from focus_peft.losses.distractors import Distractors
from focus_peft.losses.documents import Document
from focus_peft.losses.objectives import focus_loss
from focus_peft.losses.readings import LabeledWindow, Reading, Window
from focus_peft.losses.sampling import Sample, Seats, Span, draw_sample, draw_seats
from focus_peft.losses.span_logits import span_logits


CHUNK = 8
# (what older transformers does to MPT says families.OLD)
FAMILIES = ["llama", "mistral", "gpt2", "phi3", "bloom", *([] if IS_OLD else ["mpt"])]
# the document's own chunks, all but the last of them whole, and where they stand
SEATS = {
    "last": (13, Seats(0, 5, (3, 4))),
    "first": (16, Seats(0, 5, (0, 1))),
    "apart": (24, Seats(0, 6, (1, 3, 4))),
    "behind the first places": (16, Seats(2, 6, (3, 5))),
    "alone": (16, Seats(0, 2, (0, 1))),
}


# The loss


@each_decoding
@pytest.mark.parametrize(("name", "family"), [*((name, FAMILIES[0]) for name in SEATS), *zip(SEATS, FAMILIES[1:])])
def test_distractors_are_chunks_of_one_long_memory(name: str, family: str, decoding: str) -> None:
    memory, seats = SEATS[name]
    model = make_focus_model(family, decoding=decoding, r=2)
    tuner = model.base_model
    settings = tuner.settings()
    ids = document()[: memory + 12]
    others = [random_ids(CHUNK, seed=50 + number).tolist() for number in range(6)]
    sample = Sample(memory, CHUNK, Span(memory, 7, 5), None, seats)
    bank = Distractors(tuner.reader, settings, others)
    output = focus_loss(tuner.reader, settings, [Document(ids, ids, sample)], distractors=bank)

    own = [ids[start : min(start + CHUNK, memory)] for start in range(0, memory, CHUNK)]
    pieces = dict(zip(seats.own, own))
    joined = sum((pieces.get(place, others[place]) for place in range(seats.begin, seats.end)), [])
    long = [*joined, *ids[memory:]]
    whole = Sample(len(joined), CHUNK, Span(len(joined), 7, 5), None)
    expected = focus_loss(tuner.reader, settings, [Document(long, long, whole)])
    assert_equal_to(output.loss, expected.loss)
    wanted = gradients_of(model, expected.loss)
    assert_same_gradients(gradients_of(model, output.loss), wanted)


def test_the_teacher_reads_the_document_without_distractors() -> None:
    model = make_focus_model(r=2)
    tuner, ids = model.base_model, document()[:36]
    settings, window = tuner.settings(), Window(ids[24:35], 5)
    config = dataclasses.replace(tuner.active_config, distill_weight=1.0)
    bank = Distractors(tuner.reader, settings, [random_ids(CHUNK, seed=n).tolist() for n in range(6)])
    seats = Seats(0, 6, (0, 2, 5))
    sample = Sample(24, CHUNK, Span(24, 7, 5), None, seats)
    distilling = dataclasses.replace(settings, config=config)
    output = focus_loss(tuner.reader, distilling, [Document(ids, ids, sample)], distractors=bank)

    teacher = make_tiny_model()(torch.tensor([ids[:35]])).logits[0, -5:].log_softmax(-1)
    seated = Reading(ids[:24], CHUNK, seats, [LabeledWindow(None, window, [])])
    (((logits, _),),) = span_logits(tuner.reader, settings, [seated], bank)
    expected = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, log_target=True, reduction="batchmean")
    torch.testing.assert_close(output.loss, expected, rtol=1e-9, atol=0)


def test_a_short_memory_may_stand_alone() -> None:
    model = make_focus_model(chunk_size=64, r=2)
    tuner, ids = model.base_model, document()[:15]
    bank = Distractors(tuner.reader, tuner.settings(), [random_ids(64, seed=n).tolist() for n in range(2)])
    seated, unseated = (Sample(3, 64, Span(3, 7, 5), None, seats) for seats in (Seats.alone(1), None))
    alone = focus_loss(tuner.reader, tuner.settings(), [Document(ids, ids, seated)], distractors=bank)
    plain = focus_loss(tuner.reader, tuner.settings(), [Document(ids, ids, unseated)])
    assert torch.equal(alone.loss, plain.loss)


def test_a_step_leaves_the_distractors_as_they_were() -> None:
    model = make_focus_model(r=2)
    tuner, ids = model.base_model, document()[:36]
    bank = Distractors(tuner.reader, tuner.settings(), [random_ids(CHUNK, seed=n).tolist() for n in range(6)])
    sample = Sample(24, CHUNK, Span(24, 7, 5), None, Seats(0, 6, (0, 2, 5)))
    arguments = (tuner.reader, tuner.settings(), [Document(ids, ids, sample)])
    first = focus_loss(*arguments, distractors=bank).loss
    assert torch.equal(focus_loss(*arguments, distractors=bank).loss, first)


# Which are drawn


@pytest.mark.parametrize(("own", "distractors"), [(1, 2), (2, 30), (29, 30), (30, 30), (40, 30)])
def test_places_are_neighbors_and_a_document_has_as_many_as_it_has_chunks(own: int, distractors: int) -> None:
    for seed in range(300):
        seats = draw_seats(own, distractors, torch.Generator().manual_seed(seed))
        assert len(seats.own) == own and list(seats.own) == sorted(set(seats.own))
        assert 0 <= seats.begin <= seats.own[0] and seats.own[-1] < seats.end
        assert seats.end <= max(own, distractors)  # every other place has a distractor
        assert sorted([*seats.own, *seats.others]) == list(range(seats.begin, seats.end))
        rows = [*seats.own, *seats.others]
        assert [rows[row] for row in seats.order] == list(range(seats.begin, seats.end))


def test_few_are_as_likely_as_many_and_all_places_occur() -> None:
    drawn = [draw_seats(2, 33, torch.Generator().manual_seed(seed)) for seed in range(4000)]
    counts = Counter((len(seats.others) + 1).bit_length() - 1 for seats in drawn)  # 0, 1-2, 3-6, 7-14, 15-30
    assert all(abs(counts[power] / len(drawn) - 0.2) < 0.03 for power in range(5)), counts
    assert {len(seats.others) for seats in drawn} == set(range(32))
    assert {seats.begin for seats in drawn} == set(range(32))
    assert {place - seats.begin for seats in drawn for place in seats.own} == set(range(33))


def test_only_chunks_of_the_largest_size_stand_among_distractors() -> None:
    model = make_focus_model(base={"max_position_embeddings": 1000}, chunk_size=128, label_size=4)
    tuner = model.base_model
    drawn = [
        draw_sample([True] * 400, tuner.settings(), torch.Generator().manual_seed(seed), distractors=5)
        for seed in range(60)
    ]
    assert {sample.chunk_size for sample in drawn} == {64, 128}
    assert all((sample.seats is not None) == (sample.chunk_size == 128) for sample in drawn)
    assert all(len(sample.seats.own) == -(-sample.memory // 128) for sample in drawn if sample.seats)


# In a run


def test_evaluation_is_without_distractors(tmp_path: Path) -> None:
    plain, among = (trainer_of(tmp_path / str(count), distractors=count) for count in (None, 7))
    assert among.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_distractors_come_from_all_over_the_documents_that_are_long_enough() -> None:
    model = make_focus_model(**FOCUS)
    tuner = model.base_model
    size = tuner.settings().sizes.chunk
    rows = [{"input_ids": [number] * (size + 1 if number % 2 else size - 1)} for number in range(40)]
    seen = []
    read = tuner.reader.read_chunks
    tuner.reader.read_chunks = lambda store, first, chunks, *rest: (
        seen.extend(chunks),
        read(store, first, chunks, *rest),
    )
    bank = Distractors.of(tuner.reader, tuner.settings(), rows, 4)
    assert len(bank) == 4 and all(len(chunk) == size for chunk in seen)
    numbers = sorted(chunk[0] for chunk in seen)
    assert all(number % 2 for number in numbers) and numbers[-1] - numbers[0] >= 20


def test_more_than_the_data_has_are_refused_before_the_first_step(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, distractors=500)
    before = {name: weight.clone() for name, weight in adapter(trainer.model).items()}
    with refusal("`distractors`", "500", "8 documents"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in adapter(trainer.model).items())


def test_data_without_a_length_is_refused(tmp_path: Path) -> None:
    tuner = make_focus_model(**FOCUS).base_model
    with refusal("`distractors`", "`train_dataset`"):
        Distractors.of(tuner.reader, tuner.settings(), iter([]), 3)
