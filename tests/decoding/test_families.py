"""
The matrix: every family of models, every check.

Models are tiny and random, in float64 all the way through (see `exact`), so that what is equal on paper is equal to
1e-9 here; `generate` hands out logits in float32, so these agree to 1e-5. The outcomes make the table in
docs/models.md.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import BOS, make_focus_model, make_tiny_model, pad_rows, perturb_twins, random_ids
from families import FAMILIES, IS_OLD, OLD
from generating import GENERATED, TIGHT
from generating import generate as generate_greedily
from peft import PeftModel, get_peft_model
from reference import PlainModel, Reference, Sizes, SlowSequence, make_oracle
from torch import nn
from training import assert_equal_to, assert_same_gradients, document, gradients_of, loss_of, naive_of
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from focus_peft import FocusConfig
from focus_peft.losses.sampling import Sample, Span


SIZES = {"chunk_size": 5, "local_size": 5, "prompt_size": 4}  # rows are longer than sliding windows, of 6 or 7 tokens
IDS = random_ids(14, seed=3)  # two chunks, the second a token short


def _marks(family: str, attention: str) -> list[pytest.MarkDecorator]:
    if IS_OLD and (family, attention) in OLD:
        return [pytest.mark.xfail(reason=OLD[family, attention], raises=(ValueError, RuntimeError), strict=False)]
    return []


each_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=_marks(name, family.attention[0])) for name, family in FAMILIES.items()]
)
each_attention = pytest.mark.parametrize(
    ("family", "attention"),
    [
        pytest.param(name, attention, marks=_marks(name, attention), id=f"{name}-{attention}")
        for name, family in FAMILIES.items()
        for attention in family.attention
    ],
)


@functools.cache
def shared_model(family: str, attention: str | None = None) -> PeftModel:
    """A model with trained twins, for checks that change nothing of it."""
    base = {} if attention is None else {"attn_implementation": attention}
    model = make_focus_model(family, base=base, **SIZES)
    if attention is not None:
        assert model.config._attn_implementation == attention
    return model


@functools.cache
def plain_model(family: str) -> nn.Module:
    """The model that nobody wrapped, frozen: torch multiplies frozen weights with other kernels."""
    return make_tiny_model(family).requires_grad_(False)


def logits_of(model: nn.Module, ids: torch.Tensor = IDS[None], **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


def generate(model: nn.Module, ids: torch.Tensor, new_tokens: int, **options: Any) -> Any:
    """With an explicit mask, so that no generated token is taken for padding."""
    return generate_greedily(model, ids, new_tokens, **{"attention_mask": torch.ones_like(ids), **options})


@each_family
def test_defaults_alone_work(family: str) -> None:
    model = get_peft_model(make_tiny_model(family, torch.float32), FocusConfig()).eval()
    ids = random_ids(70)[None]
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2).shape == (1, 72)
    assert torch.isfinite(logits_of(model, ids)).all()
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)


@each_family
def test_twins_equal_the_base_at_the_start(family: str) -> None:
    for r, decoding in ((None, "streaming"), (2, "exact")):
        model = get_peft_model(make_tiny_model(family), FocusConfig(r=r, decoding=decoding, **SIZES)).eval()
        nobody = SlowSequence(PlainModel(make_tiny_model(family), {}), Sizes(5, 5, 4, BOS, decoding), IDS.tolist())
        torch.testing.assert_close(logits_of(model, logits_to_keep=1)[0, -1], nobody.logits, **TIGHT)
    perturb_twins(model)  # or else there would be nothing to see
    assert not torch.allclose(logits_of(model, logits_to_keep=1)[0, -1], nobody.logits, **GENERATED)


@each_family
def test_no_memory_equals_the_base_model_bit_for_bit(family: str) -> None:
    model, base = shared_model(family), plain_model(family)
    assert torch.equal(logits_of(model, local_size=20), logits_of(base))
    ours, theirs = generate(model, IDS[None], 3, local_size=20), generate(base, IDS[None], 3)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


@each_family
def test_batched_chunks_equal_one_by_one(family: str) -> None:
    model, ids = shared_model(family), random_ids(20, seed=4)[None]
    for decoding in ("streaming", "exact"):
        together, one_by_one = (
            logits_of(model, ids, decoding=decoding, logits_to_keep=2, chunk_batch_size=size) for size in (3, 1)
        )
        torch.testing.assert_close(together, one_by_one, **TIGHT)


@each_family
def test_each_row_of_a_ragged_batch_equals_that_row_alone(family: str) -> None:
    model = shared_model(family)
    rows = [random_ids(length, seed=length) for length in (14, 4, 9)]
    for decoding, side in (("streaming", "left"), ("exact", "right")):
        ids, mask = pad_rows(rows, side)
        sizes = {"chunk_batch_size": 2} if decoding == "exact" else {}
        together = generate(model, ids, 3, attention_mask=mask, decoding=decoding, **sizes)
        assert torch.equal(together.sequences[:, : ids.shape[1]], pad_rows(rows, "left")[0])
        for number, row in enumerate(rows):
            alone = generate(model, row[None], 3, decoding=decoding)
            assert torch.equal(together.sequences[number, -3:], alone.sequences[0, -3:])
            found = torch.stack([logits[number] for logits in together.logits])
            torch.testing.assert_close(found, torch.cat(alone.logits), **GENERATED)


@functools.cache
def slowly(family: str, decoding: str, attention: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Six greedy tokens, of which the last but one makes the window spill, and their logits."""
    base = {} if attention is None else {"attn_implementation": attention}
    return Reference(make_tiny_model(family, **base), shared_model(family), decoding=decoding).greedy(IDS, 6)


def assert_equals_the_reference(family: str, attention: str, decoding: str) -> None:
    """While generating, and when the same tokens are read at once."""
    model = shared_model(family, attention)
    # all kinds of attention compute the same, but for Falcon's, whose eager one counts ALiBi twice
    tokens, logits = slowly(family, decoding, attention if family == "falcon_alibi" else None)
    everything = torch.cat([IDS, tokens[:-1]])[None]
    found = logits_of(model, everything, decoding=decoding, logits_to_keep=6)[0]
    torch.testing.assert_close(found, logits, **TIGHT)
    output = generate(model, IDS[None], 6, decoding=decoding)
    assert output.sequences[0, len(IDS) :].tolist() == tokens.tolist()
    torch.testing.assert_close(torch.cat(output.logits).double(), logits, **GENERATED)


@each_attention
def test_exact_mode_equals_the_slow_reference(family: str, attention: str) -> None:
    assert_equals_the_reference(family, attention, "exact")


@each_attention
def test_streaming_equals_its_slow_reference(family: str, attention: str) -> None:
    assert_equals_the_reference(family, attention, "streaming")


@each_family
def test_only_twins_have_a_gradient_and_it_is_the_naive_one(family: str) -> None:
    sample, ids = Sample(9, 5, Span(9, 5, 2), Span(3, 5, 2)), document(16)
    model = make_focus_model(family, **SIZES).train()
    naive = naive_of(model, family)
    for decoding in ("streaming", "exact"):
        naive.decoding = decoding
        expected = naive.loss(ids, ids, sample)
        wanted = dict(
            zip(naive.parameters, torch.autograd.grad(expected, [*naive.parameters.values()], allow_unused=True))
        )
        output = loss_of(model, ids, sample, decoding=decoding)
        assert_equal_to(output.loss, expected)
        assert_same_gradients(gradients_of(model, output.loss), wanted, none_is_zero=True)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".focus_" in name), name
        assert parameter.grad is None or ".focus_" in name, name


@each_family
def test_a_loaded_adapter_computes_the_same_logits(family: str, tmp_path: Path) -> None:
    model = shared_model(family)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_tiny_model(family), tmp_path)
    torch.testing.assert_close(logits_of(loaded, logits_to_keep=3), logits_of(model, logits_to_keep=3), **TIGHT)


@each_family
def test_a_disabled_adapter_leaves_the_base_model(family: str) -> None:
    model, base = shared_model(family), plain_model(family)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(base))
        ours = generate(model, IDS[None], 3)
    theirs = generate(base, IDS[None], 3)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


@each_family
def test_beams_with_a_shared_memory_equal_beams_without(family: str) -> None:
    model = shared_model(family)
    documents = [random_ids(8, seed=1), random_ids(5, seed=2)]
    questions = torch.stack([random_ids(4, seed=3), random_ids(4, seed=4)])
    options = {"num_beams": 2, "num_return_sequences": 2, "output_scores": True}
    # the oracle reads every beam from its start, with chunks of its own
    oracle = make_oracle(
        Reference(make_tiny_model(family), model), questions.shape[1], [d.tolist() for d in documents]
    )
    expected = generate(oracle, questions, 3, use_cache=False, **options)
    found = generate(model, questions, 3, memory=model.encode(documents), **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, **GENERATED)


@pytest.mark.skipif(IS_OLD, reason="older transformers read Gemma2 with sdpa, but without capping its logits")
def test_the_matrix_has_every_attention_that_transformers_has() -> None:
    for kind in FAMILIES.values():
        if not kind.missing:
            model = MODEL_FOR_CAUSAL_LM_MAPPING[getattr(transformers, kind.config)]
            assert model._supports_sdpa == ("sdpa" in kind.attention), model.__name__


def test_what_the_matrix_generates_is_varied() -> None:
    """Checks of tokens and beams would prove little if all tokens and beams were alike."""
    model = shared_model("llama")
    beams = generate(model, IDS[None], 4, num_beams=2, num_return_sequences=2).sequences
    assert not torch.equal(beams[0], beams[1])
    assert len(set(generate(model, IDS[None], 8).sequences[0, len(IDS) :].tolist())) > 2
