"""The choice loss: cross-entropy of what labels look at, against the chunks that hold them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import each_decoding, make_focus_model, make_tiny_model
from peft import PeftModel
from refusal import refusal
from training import assert_equal_to, assert_same_gradients, document, gradients_of, naive_of

from focus_peft import FocusOutput
from focus_peft.losses.distractors import Distractors
from focus_peft.losses.documents import Document
from focus_peft.losses.objectives import focus_loss
from focus_peft.losses.sampling import Sample, Seats, Span


# 29 tokens of memory in chunks of 8, 8, 8 and 5; labels at 36 to 40, and at 19 to 22
CONTINUATION, REPETITION = Span(29, 7, 5), Span(10, 9, 4)
# the label at 36 is told in the first chunk and in the last, that at 38 in the second and in the local window, that at
# 45 is none, and that at 20 is told in the first chunk, too
EVIDENCE = [(36, 3), (36, 25), (36, 5), (38, 12), (38, 31), (45, 1), (20, 7)]


def loss_of(model: PeftModel, sample: Sample, weight: float = 1.0, labels: list[int] | None = None) -> FocusOutput:
    tuner, ids = model.base_model, document()
    settings = tuner.settings()
    settings = dataclasses.replace(settings, config=dataclasses.replace(settings.config, choice_weight=weight))
    return focus_loss(tuner.reader, settings, [Document(ids, labels or ids, sample, EVIDENCE)])


@each_decoding
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral", "phi3", "gpt_neox"])
def test_the_choice_loss_and_its_gradient_equal_eager_attention(family: str, decoding: str) -> None:
    model = make_focus_model(family, decoding=decoding)
    naive, ids = naive_of(model, family), document()
    spans = {
        # what is repeated stands in the chunk that it is taken from
        "repetition": (Sample(29, 8, None, REPETITION), {0: [2], 1: [0, 2], 2: [2], 3: [2]}),
        "continuation": (Sample(29, 8, CONTINUATION, None), {0: [0, 3], 2: [1]}),
    }
    for loss, (sample, holders) in spans.items():
        naive.plain.model.zero_grad(set_to_none=True)
        for parameter in naive.parameters.values():
            parameter.grad = None
        expected = naive.choice_loss(ids, sample, getattr(sample, loss), holders)
        output = loss_of(model, sample)
        assert_equal_to(output.loss_choice, expected)
        assert output.num_choice == len(holders)
        plain, weighted = loss_of(model, sample, 0.0), loss_of(model, sample, 3.0)
        assert plain.loss_choice is None
        assert_equal_to(weighted.loss, plain.loss + 3.0 * expected)
        expected.backward()
        before = gradients_of(model, loss_of(model, sample, 0.0).loss)
        after = gradients_of(model, loss_of(model, sample, 1.0).loss)
        difference = {
            name: gradient if gradient is None or before[name] is None else gradient - before[name]
            for name, gradient in after.items()
        }
        assert_same_gradients(difference, naive.gradients(), none_is_zero=True)


def test_a_place_that_is_no_label_does_not_count() -> None:
    model, ids = make_focus_model(), document()
    labels = [-100 if place in (20, 22) else token for place, token in enumerate(ids)]
    sample = Sample(29, 8, None, REPETITION)
    naive = naive_of(model)
    output = loss_of(model, sample, labels=labels)
    assert output.num_choice == 2
    assert_equal_to(output.loss_choice, naive.choice_loss(ids, sample, REPETITION, {0: [2], 2: [2]}))


def test_what_is_told_nowhere_has_no_choice_loss() -> None:
    model = make_focus_model()
    output = loss_of(model, Sample(29, 8, Span(29, 11, 3), None))
    assert output.num_choice == 0 and output.loss_choice == 0
    assert torch.equal(output.loss, loss_of(model, Sample(29, 8, Span(29, 11, 3), None), 0.0).loss)


@pytest.mark.parametrize("seats", [Seats(0, 6, (1, 3, 4)), Seats(2, 7, (2, 5, 6))])
def test_distractors_are_looked_at_as_chunks_of_one_long_memory(seats: Seats) -> None:
    model, ids = make_focus_model(choice_weight=1.0, r=2), document()
    tuner = model.base_model
    others = [document(8, seed=10 + number) for number in range(7)]
    bank = Distractors(tuner.reader, tuner.settings(), others)
    evidence = [(31, 3), (31, 12), (33, 22)]
    sample = Sample(24, 8, Span(24, 7, 5), None, seats)
    given = Document(ids, ids, sample, evidence)
    output = focus_loss(tuner.reader, tuner.settings(), [given], distractors=bank)

    own = dict(zip(seats.own, (0, 8, 16)))
    places = range(seats.begin, seats.end)
    pieces = [ids[own[place] : own[place] + 8] if place in own else others[place] for place in places]
    long = [*(token for piece in pieces for token in piece), *ids[24:]]
    shift = len(long) - len(ids)
    begins = [8 * places.index(place) for place in seats.own]
    moved = [(label + shift, begins[told // 8] + told % 8) for label, told in evidence]
    whole = Document(long, long, Sample(24 + shift, 8, Span(24 + shift, 7, 5), None), moved)
    expected = focus_loss(tuner.reader, tuner.settings(), [whole])
    assert output.num_choice == 2
    assert_equal_to(output.loss_choice, expected.loss_choice)


def test_the_model_takes_evidence() -> None:
    model = make_focus_model(choice_weight=0.5, chunk_size=8, label_size=6, repetition_weight=0.0)
    ids = torch.tensor([document()])
    labels = torch.full_like(ids, -100)
    labels[0, 40:44] = ids[0, 40:44]
    evidence = torch.tensor([[[40, 2], [41, 3], [-100, -100]]])
    output = model(ids, labels=labels, evidence=evidence)
    assert output.num_choice == 2 and output.loss_choice > 0
    assert model(ids, labels=labels).num_choice == 0
    padded = torch.nn.functional.pad(ids, (3, 0)), torch.nn.functional.pad(labels, (3, 0), value=-100)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (3, 0))
    again = model(padded[0], attention_mask=mask, labels=padded[1], evidence=evidence)
    assert torch.equal(again.loss, output.loss)


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (torch.tensor([[40, 2]]), ("`evidence`", "(1, pairs, 2)", "(1, 2)")),
        (torch.tensor([[[40.0, 2.0]]]), ("`evidence`", "float")),
        (torch.tensor([[[40, 44]]]), ("`evidence`", "(40, 44)", "row 0", "44 tokens")),
        (torch.tensor([[[-100, 4]]]), ("`evidence`", "(-100, 4)")),
    ],
)
def test_evidence_that_cannot_be_is_refused(evidence: Any, words: tuple[str, ...]) -> None:
    model = make_focus_model(choice_weight=0.5)
    ids = torch.tensor([document()])
    with refusal(*words):
        model(ids, labels=ids, evidence=evidence)


def test_a_model_that_does_not_show_its_attention_is_refused() -> None:
    model = make_focus_model("mpt", choice_weight=0.5)
    ids = torch.tensor([document()])
    with refusal("`choice_weight`", "needs to see", type(make_tiny_model("mpt")).__name__):
        model(ids, labels=ids)
