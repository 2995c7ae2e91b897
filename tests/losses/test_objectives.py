"""
The training loss equals a naive computation with a graph through everything, and behaves as training code expects.

All comparisons are in float64, on models that compute rotations in float64 too (see conftest), so that what is equal
on paper is equal to 1e-9 here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from conftest import BOS, PAD, each_decoding, make_focus_model, make_tiny_model, pad_rows, small_config
from peft import PeftModel, get_peft_model
from refusal import refusal
from training import (
    IGNORED,
    assert_equal_to,
    assert_same_gradients,
    batch_of,
    document,
    gradients_of,
    loss_of,
    naive_of,
    reading,
    seeded,
)

from focus_peft.losses.documents import Document
from focus_peft.losses.objectives import focus_loss
from focus_peft.losses.readings import Window
from focus_peft.losses.sampling import Sample, Span, draw_sample
from focus_peft.losses.span_logits import span_logits, teacher_logits


FAMILIES = ["llama", "mistral", "gemma3", "gpt2", "phi3", "gpt_neox"]

# 29 tokens of memory in chunks of 8, 8, 8 and 5
BOTH = Sample(29, 8, Span(29, 7, 5), Span(10, 9, 3))
SAMPLES = {
    "both": BOTH,
    "as many labels": Sample(24, 8, Span(24, 6, 4), Span(3, 8, 4)),
    "fewer labels first": Sample(26, 8, Span(26, 6, 2), Span(3, 8, 5)),
    "one label": Sample(17, 8, Span(17, 4, 1), None),
    "one local token": Sample(20, 8, Span(20, 1, 4), Span(0, 1, 3)),
    "local shorter than the prompt": Sample(20, 8, Span(20, 2, 4), Span(4, 3, 4)),
    "chunks shorter than the prompt": Sample(7, 3, Span(7, 6, 4), Span(1, 4, 2)),
    "one short chunk": Sample(3, 8, Span(3, 5, 4), None),
    "a memory of one token": Sample(1, 8, Span(1, 3, 3), None),
    "repetition of everything": Sample(21, 8, None, Span(0, 12, 9)),
}


def drawn_samples(
    model: PeftModel, rows: Sequence[list[int]], generator: torch.Generator | None
) -> list[Sample | None]:
    """What the model will draw for labels `rows`, of which -100 is none."""
    settings = model.base_model.settings()
    return [draw_sample([target != IGNORED for target in row], settings, generator) for row in rows]


# The losses and their gradients


@each_decoding
@pytest.mark.parametrize(
    ("family", "r"),
    [*((family, None) for family in FAMILIES), *((family, 2) for family in ("llama", "gpt2", "phi3"))],
)
def test_losses_and_gradients_equal_one_label_at_a_time(family: str, r: int | None, decoding: str) -> None:
    model = make_focus_model(family, decoding=decoding, r=r)
    ids = document()
    naive = naive_of(model, family)
    expected = naive.loss(ids, ids, BOTH)
    expected.backward()

    output = loss_of(model, ids, BOTH)
    assert_equal_to(output.loss, expected)
    assert_equal_to(output.loss_continuation, naive.loss(ids, ids, BOTH, BOTH.continuation))
    assert_equal_to(output.loss_repetition, naive.loss(ids, ids, BOTH, BOTH.repetition))
    assert_same_gradients(gradients_of(model, output.loss), naive.gradients())


@each_decoding
@pytest.mark.parametrize("name", SAMPLES)
def test_every_shape_of_spans_equals_one_label_at_a_time(name: str, decoding: str) -> None:
    model = make_focus_model(decoding=decoding)
    ids, sample = document(), SAMPLES[name]
    naive = naive_of(model)
    expected = naive.loss(ids, ids, sample)
    expected.backward()
    output = loss_of(model, ids, sample)
    assert_equal_to(output.loss, expected)
    assert_same_gradients(gradients_of(model, output.loss), naive.gradients())


@each_decoding
@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("place", [29, 29 + 7 - 4, 10, 29 + 7 - 1])
def test_bos_is_added_unless_prompt_or_window_begin_with_it(place: int, add_bos: bool, decoding: str) -> None:
    model = make_focus_model(decoding=decoding, add_bos=add_bos)
    ids = document()
    ids[place] = BOS
    naive = naive_of(model)
    expected = naive.loss(ids, ids, BOTH)
    assert_equal_to(loss_of(model, ids, BOTH).loss, expected)


@each_decoding
def test_the_model_draws_its_spans_and_returns_these_losses(decoding: str) -> None:
    model = make_focus_model(decoding=decoding, label_size=4).train()
    rows = [document(40, seed=1), document(40, seed=2), document(40, seed=3)]
    output = model(batch_of(rows), labels=batch_of(rows), generator=seeded(5))
    samples = drawn_samples(model, rows, seeded(5))

    naive = naive_of(model)
    parts = []
    for kind in ("continuation", "repetition"):
        losses = [naive.loss(ids, ids, sample, getattr(sample, kind)) for ids, sample in zip(rows, samples)]
        parts.append(torch.stack(losses).mean())
        assert_equal_to(output[f"loss_{kind}"], parts[-1])
        assert output[f"num_{kind}"].item() == 12  # all have four labels
    sum(parts).backward()
    assert_equal_to(output.loss, sum(parts))
    assert_same_gradients(gradients_of(model, output.loss), naive.gradients())


@each_decoding
@pytest.mark.parametrize("chunk_batch_size", [1, 3])
def test_the_chunk_batch_size_does_not_matter(chunk_batch_size: int, decoding: str) -> None:
    model = make_focus_model(decoding=decoding)
    ids = document()
    expected = loss_of(model, ids, BOTH)
    wanted = gradients_of(model, expected.loss)
    output = loss_of(model, ids, BOTH, chunk_batch_size=chunk_batch_size)
    assert_equal_to(output.loss, expected.loss, 1e-12)
    assert_same_gradients(gradients_of(model, output.loss), wanted, 1e-11)


def test_chunks_are_read_once_for_both_losses_and_without_a_graph() -> None:
    model = make_focus_model("llama")
    ids, sample = document(), SAMPLES["as many labels"]
    loss_of(model, ids, sample)  # the first use of a model may look at it first
    read: list[tuple[int, bool]] = []
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, args, output: read.append((args[0].numel(), torch.is_grad_enabled())))

    def tokens(part: Sample) -> tuple[int, int]:
        """(all tokens read, those with a graph)."""
        read.clear()
        loss_of(model, ids, part)
        return sum(count for count, _ in read), sum(count for count, graph in read if graph)

    continuation, repetition = (
        tokens(Sample(24, 8, sample.continuation, None)),
        tokens(Sample(24, 8, None, sample.repetition)),
    )
    both = tokens(sample)
    assert both[0] == continuation[0] + repetition[0] - sample.memory
    # with a graph: the candidates (one for every chunk and label) and the tokens that predict
    assert continuation[1] == repetition[1] == 3 * 4 + 4
    assert both[1] == 2 * (3 * 4 + 4)


# Labels and padding


@each_decoding
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("hidden", [PAD, IGNORED])
def test_a_padded_batch_equals_its_rows_without_padding(hidden: int, side: str, decoding: str) -> None:
    model = make_focus_model(decoding=decoding, label_size=3).train()
    rows = [document(40, seed=1), document(23, seed=2), document(31, seed=3)]
    ids, mask = pad_rows([torch.tensor(row) for row in rows], side)
    labels = ids.masked_fill(mask == 0, hidden)  # the mask alone says what is padding
    output = model(ids, attention_mask=mask, labels=labels, generator=seeded(7))
    found = gradients_of(model, output.loss)

    generator = seeded(7)  # rows are drawn in their order
    alone = [model(batch_of([row]), labels=batch_of([row]), generator=generator) for row in rows]
    for kind in ("continuation", "repetition"):
        counts = torch.stack([part[f"num_{kind}"] for part in alone])
        losses = torch.stack([part[f"loss_{kind}"] for part in alone])
        assert output[f"num_{kind}"].item() == counts.sum().item()
        assert_equal_to(output[f"loss_{kind}"], (losses * counts).sum() / counts.sum())
    assert output.num_continuation.item() == 9
    total = sum(part.loss for part in alone) / 3  # all have as many labels
    assert output.num_repetition.item() == 9
    assert_same_gradients(found, gradients_of(model, total))


@each_decoding
def test_masked_labels_do_not_count(decoding: str) -> None:
    model = make_focus_model(decoding=decoding)
    ids, targets = document(), document(seed=9)  # a label need not be the token
    for place in (36, 38, 40, 20):  # three of the continuation's five labels and one of the repetition's three
        targets[place] = IGNORED
    output = loss_of(model, ids, BOTH, targets)
    assert output.num_continuation.item() == 2
    assert output.num_repetition.item() == 2
    naive = naive_of(model)
    expected = naive.loss(ids, targets, BOTH)
    expected.backward()
    assert_equal_to(output.loss, expected)
    assert_same_gradients(gradients_of(model, output.loss), naive.gradients())


def test_spans_are_placed_where_labels_are() -> None:
    model = make_focus_model(label_size=4).train()
    ids = document()
    targets = [token if place in (30, 31, 12) else IGNORED for place, token in enumerate(ids)]
    for seed in range(5):
        output = model(batch_of([ids]), labels=batch_of([targets]), generator=seeded(seed))
        (sample,) = drawn_samples(model, [targets], seeded(seed))
        assert output.num_continuation.item() in (1, 2)
        assert_equal_to(output.loss, naive_of(model).loss(ids, targets, sample))


def test_a_row_without_labels_contributes_nothing() -> None:
    model = make_focus_model(label_size=4).train()
    ids, other = document(seed=1), document(seed=2)
    alone = model(batch_of([ids]), labels=batch_of([ids]), generator=seeded(3))
    wanted = gradients_of(model, alone.loss)
    labels = batch_of([ids, [IGNORED] * len(other)])
    output = model(batch_of([ids, other]), labels=labels, generator=seeded(3))
    assert_equal_to(output.loss, alone.loss)
    assert output.num_continuation.item() == output.num_repetition.item() == 4
    assert_same_gradients(gradients_of(model, output.loss), wanted)


@pytest.mark.parametrize("distill_weight", [0.0, 0.5])
@pytest.mark.parametrize("loss", ["sum", "draw"])
def test_a_batch_without_labels_gives_zero_and_can_be_trained_on(loss: str, distill_weight: float) -> None:
    model = make_focus_model(loss=loss, distill_weight=distill_weight).train()
    output = model(batch_of([document()]), labels=torch.full((1, 44), IGNORED), generator=seeded(0))
    assert output.loss.item() == output.loss_continuation.item() == output.loss_repetition.item() == 0
    assert output.num_continuation.item() == output.num_repetition.item() == 0
    assert (output.loss_distillation is not None) == (distill_weight > 0)
    found = gradients_of(model, output.loss)
    assert all(gradient is not None and not gradient.any() for gradient in found.values())
    with torch.no_grad():
        assert model(batch_of([document()]), labels=torch.full((1, 44), IGNORED)).loss.item() == 0


@pytest.mark.parametrize("length", [1, 2])
def test_a_row_too_short_for_any_span_contributes_nothing(length: int) -> None:
    model = make_focus_model().train()
    rows = [document(40), document(length)]
    ids, mask = pad_rows([torch.tensor(row) for row in rows])
    output = model(ids, attention_mask=mask, labels=ids, generator=seeded(0))
    alone = model(batch_of(rows[:1]), labels=batch_of(rows[:1]), generator=seeded(0))
    assert_equal_to(output.loss, alone.loss)
    only = model(batch_of(rows[1:]), labels=batch_of(rows[1:]), generator=seeded(0))
    assert only.loss.item() == 0


def test_a_document_that_fits_the_local_window_trains_too() -> None:
    model = make_focus_model(local_size=64).train()
    ids = document(20)
    output = model(batch_of([ids]), labels=batch_of([ids]), generator=seeded(0))
    (sample,) = drawn_samples(model, [ids], seeded(0))
    assert_equal_to(output.loss, naive_of(model).loss(ids, ids, sample))


@pytest.mark.parametrize(
    "sizes",
    [
        {"chunk_size": 40, "prompt_size": 15, "local_size": 20},  # 40 + BOS + 15 + 8 more = 64
        {"chunk_size": 8, "prompt_size": 8, "local_size": 55},  # BOS + 55 + 8 more = 64
    ],
    ids=["chunk", "local"],
)
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_labels_past_the_position_table_are_refused(family: str, sizes: dict[str, int]) -> None:
    base = {"max_position_embeddings": 64}
    ids = batch_of([document(150)])
    model = make_focus_model(family, base=base, label_size=9, **sizes)
    for seed in range(4):
        assert model(ids, labels=ids, generator=seeded(seed)).loss.isfinite()
    model = make_focus_model(family, base=base, label_size=10, **sizes)
    for seed in range(4):  # whatever is drawn
        with pytest.raises(ValueError, match="label_size"):
            model(ids, labels=ids, generator=seeded(seed))


# What is random


def test_a_generator_decides_what_is_drawn() -> None:
    model = make_focus_model(label_size=4).train()
    ids = batch_of([document(60)])
    losses = [model(ids, labels=ids, generator=seeded(seed)).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    state = torch.get_rng_state()
    model(ids, labels=ids, generator=seeded(1))
    assert torch.equal(state, torch.get_rng_state())


def test_in_training_the_global_seed_decides_what_is_drawn() -> None:
    model = make_focus_model(label_size=4).train()
    ids = batch_of([document(60)])

    def losses(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [model(ids, labels=ids).loss.item() for _ in range(4)]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)
    assert len(set(losses(1))) > 1


def test_evaluation_draws_the_same_spans_every_time() -> None:
    model = make_focus_model(label_size=4).eval()
    ids = batch_of([document(60), document(60, seed=1)])
    losses = set()
    for seed in range(3):
        torch.manual_seed(seed)
        losses.add(model(ids, labels=ids).loss.item())
    assert len(losses) == 1


def test_dropout_of_the_base_model_stays_off() -> None:
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    model = make_focus_model("gpt2", base=dropout, label_size=4)
    ids = batch_of([document()])
    expected = model.eval()(ids, labels=ids, generator=seeded(0)).loss
    model.train()
    for by_hand in (False, True):  # the base model may be put into training mode by hand, too
        model.get_base_model().train(by_hand)
        modes = {name: module.training for name, module in model.named_modules()}
        assert modes["base_model.model"] is by_hand and modes["base_model"]
        for seed in range(3):
            torch.manual_seed(seed)
            assert torch.equal(model(ids, labels=ids, generator=seeded(0)).loss, expected)
        assert modes == {name: module.training for name, module in model.named_modules()}


@each_decoding
def test_chunks_of_all_documents_of_a_batch_are_read_together(decoding: str) -> None:
    model = make_focus_model(decoding=decoding, label_size=4, distill_weight=0.5).train()
    tuner = model.base_model
    rows = [document(50), document(44, seed=1), document(37, seed=2)]
    samples = drawn_samples(model, rows, seeded(0))
    documents = [Document(ids, ids, sample) for ids, sample in zip(rows, samples)]
    calls: list[int] = []
    read = tuner.reader._read_chunks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner.reader, "_read_chunks", lambda *args: calls.append(len(args[2])) or read(*args))
        together = focus_loss(tuner.reader, tuner.settings(), documents)
        assert max(calls) == sum(-(-sample.memory // sample.chunk_size) for sample in samples if sample)
        calls.clear()
        patch.setattr("focus_peft.losses.span_logits.TOKEN_BUDGET", 1)
        apart = focus_loss(tuner.reader, tuner.settings(), documents)
        assert max(calls) < sum(-(-sample.memory // sample.chunk_size) for sample in samples if sample)
    assert_equal_to(together.loss, apart.loss)
    assert_same_gradients(gradients_of(model, together.loss), gradients_of(model, apart.loss))


# How the parts are combined


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5), (1.0, 0.0), (0.0, 3.0)])
def test_the_loss_is_the_weighted_sum_of_its_parts(weights: tuple[float, float]) -> None:
    fields = {"continuation_weight": weights[0], "repetition_weight": weights[1]}
    model = make_focus_model(label_size=4, **fields).train()
    rows = batch_of([document(50), document(50, seed=1)])
    output = model(rows, labels=rows, generator=seeded(0))
    assert_equal_to(output.loss, weights[0] * output.loss_continuation + weights[1] * output.loss_repetition)
    for weight, kind in zip(weights, ("continuation", "repetition")):
        assert (output[f"num_{kind}"].item() > 0) == (weight > 0)
        assert (output[f"loss_{kind}"].item() > 0) == (weight > 0)
        assert not output[f"loss_{kind}"].requires_grad
    assert output.loss_distillation is None


def test_draw_takes_one_loss_for_each_row() -> None:
    model = make_focus_model(label_size=4, loss="draw").train()
    row = batch_of([document(50)])
    drawn = []
    for seed in range(12):
        output = model(row, labels=row, generator=seeded(seed))
        assert sorted([output.num_continuation.item(), output.num_repetition.item()]) == [0, 4]
        assert_equal_to(output.loss, output.loss_continuation + output.loss_repetition)
        drawn.append(output.num_continuation.item() > 0)
        (sample,) = drawn_samples(model, row.tolist(), seeded(seed))
        assert (sample.continuation is not None) == drawn[-1]
    assert any(drawn) and not all(drawn)
    rows = row.repeat(12, 1)
    output = model(rows, labels=rows, generator=seeded(0))
    assert output.num_continuation.item() + output.num_repetition.item() == 48
    assert 0 < output.num_continuation.item() < 48


@each_decoding
@pytest.mark.parametrize("distill_weight", [0.25, 1.0])
def test_distillation_is_the_divergence_from_the_base_models_full_reading(
    distill_weight: float, decoding: str
) -> None:
    model = make_focus_model(decoding=decoding, r=2)
    base, naive = make_tiny_model(), naive_of(model)
    ids = document()
    targets = [IGNORED if place in (37, 21) else token for place, token in enumerate(ids)]
    weights = (2.0, 0.5)
    output = loss_of(model, ids, BOTH, targets, weights, distill_weight)

    entropy = divergence = 0.0
    for weight, span in zip(weights, (BOTH.continuation, BOTH.repetition)):
        student = naive.logits(ids, BOTH, span).log_softmax(-1)
        with torch.no_grad():
            everything = torch.tensor([ids[: BOTH.memory] + ids[span.start : span.end - 1]])
            teacher = base(everything).logits[0, -span.labels :].log_softmax(-1)
        divergences = []
        for row, target in enumerate(targets[span.first_label : span.end]):
            if target != IGNORED:
                divergences.append(F.kl_div(student[row], teacher[row], reduction="sum", log_target=True))
        assert len(divergences) == span.labels - 1
        divergence += weight * torch.stack(divergences).mean()
        entropy += weight * naive.loss(ids, targets, BOTH, span)
    expected = (1 - distill_weight) * entropy + distill_weight * divergence
    expected.backward()
    assert_equal_to(output.loss_distillation, divergence)
    assert_equal_to(output.loss, expected)
    assert_same_gradients(gradients_of(model, output.loss), naive.gradients())


@pytest.mark.parametrize(
    ("family", "memory"),
    [
        *((FAMILIES[0], memory) for memory in (1, 5, 8, 9, 29)),
        *zip([*FAMILIES[1:], "bloom", "gptj", "deepseek_v3"], [1, 5, 8, 9, 29, 1, 5, 29]),
    ],
)
def test_the_teacher_reads_as_the_base_model_does(family: str, memory: int) -> None:
    tuner = make_focus_model(family).base_model
    ids = document()[: memory + 11]
    windows = [Window(ids[memory:], 5), Window(ids[:4], 3)]
    base = make_tiny_model(family)
    for window, logits in zip(windows, teacher_logits(tuner.reader, ids[:memory], windows)):
        expected = base(torch.tensor([ids[:memory] + window.ids])).logits[0, -window.labels :]
        assert_equal_to(logits, expected)


@pytest.mark.parametrize("family", ["gptj", "codegen", "gpt2"])
def test_the_teacher_may_read_up_to_the_end_of_a_table(family: str) -> None:
    model = make_focus_model(family, base={"max_position_embeddings": 40})
    output = loss_of(model, document(), Sample(29, 8, BOTH.continuation, None), distill_weight=1.0)
    window = Window(document()[29:40], 5)
    tuner = model.base_model
    (((logits, _),),) = span_logits(tuner.reader, tuner.settings(), [reading(document()[:29], 8, window)])
    base = make_tiny_model(family, max_position_embeddings=40)
    teacher = base(torch.tensor([document()[:40]])).logits[0, -5:].log_softmax(-1)
    expected = F.kl_div(logits.log_softmax(-1), teacher, log_target=True, reduction="batchmean")
    assert_equal_to(output.loss, expected)


def test_each_span_is_distilled_if_memory_and_window_fit_the_model() -> None:
    sample = Sample(29, 8, Span(29, 7, 5), Span(10, 7, 4))  # the teacher reads 29 + 11 and 29 + 10 tokens
    model, ids = make_focus_model(base={"max_position_embeddings": 39}), document()
    without = loss_of(model, ids, sample)
    fits = loss_of(model, ids, Sample(29, 8, None, sample.repetition), distill_weight=1.0).loss
    assert abs(fits.item() - without.loss_repetition.item()) > 1e-3
    output = loss_of(model, ids, sample, distill_weight=1.0)
    assert_equal_to(output.loss_continuation, without.loss_continuation)
    assert_equal_to(output.loss, without.loss_continuation + fits)  # of what does not fit, cross-entropy alone


def test_labels_that_are_no_tensor_are_refused() -> None:
    model, ids = make_focus_model(), batch_of([document()])
    with refusal("`labels`", "a list", model=model):
        model(ids, labels=ids.tolist())


def test_layers_of_ones_own_class_are_trained_as_transformers_own() -> None:
    found = []
    for own in (False, True):
        base = make_tiny_model(dtype=torch.float32)
        for layer in base.model.layers if own else ():
            forward = inspect.unwrap(type(layer).forward)  # without checkpointing of transformers
            layer.__class__ = type("Layer", (torch.nn.Module,), {"forward": forward})
        model, ids = get_peft_model(base, small_config()), batch_of([document()])
        found.append(gradients_of(model, model(ids, labels=ids, generator=seeded(0)).loss))
    assert_same_gradients(*found)
