"""Candidates choose chunks, and the frozen model reads those in full."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model, pad_rows, random_ids
from families import FAMILIES, SEES_TABLES
from generating import GENERATED, TIGHT, assert_row_is, generate, make_pair, ones
from peft import PeftModel
from reference import greedy_steps, make_oracle
from slow_reading import ReadingReference

from focus_peft.frozen.compat import CACHE


SIZES = {"chunk_size": 5, "local_size": 6, "prompt_size": 3}

# with soft-capping, sinks, latents, sliding windows, learned positions, and keys of as many heads as queries
QUICK = ["llama", "gemma2", "gpt_oss", "deepseek_v3", "mistral", "olmo2", "gpt_neox", "opt", "gpt2"]
# their attention is looked up by no name, so that nobody sees it
HIDDEN = ["falcon", "falcon_new", "falcon_alibi", "mpt", "bloom", *([] if SEES_TABLES else ["gptj", "codegen"])]


Pair = Callable[..., tuple[PeftModel, ReadingReference]]


@functools.cache
def make_reading(keep: bool, count: int = 2, family: str = "llama") -> tuple[PeftModel, ReadingReference]:
    """A model that reads so many chunks, and the reference that it is compared with; tests share them."""
    model, reference = make_pair(family, read_chunks=count, keep_candidates=keep, **SIZES)
    return model, ReadingReference(reference, count, keep)


@pytest.fixture(params=[False, True], ids=["alone", "behind candidates"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return functools.partial(make_reading, request.param)


def read_by(output: Any) -> list[list[int]]:
    """The chunks that each row of an output read."""
    return output[CACHE].read_chunks


# behind candidates the rest runs with `make test-long`: what is a family's own there, streaming has in every family
@pytest.mark.parametrize(
    ("keep", "family"),
    [
        pytest.param(keep, name, marks=[] if name in QUICK else [pytest.mark.slow, pytest.mark.long][: keep + 1])
        for keep in (False, True)
        for name in FAMILIES
        if name not in HIDDEN
    ],
)
def test_greedy_tokens_and_logits_equal_the_reference(keep: bool, family: str) -> None:
    model, reference = make_reading(keep, 2, family)
    ids = random_ids(29)
    assert_row_is(generate(model, ids, 14), 0, len(ids), reference.greedy(ids, 14), GENERATED)  # it spills twice


@pytest.mark.parametrize("count", [1, 3, 4, 99])
def test_any_number_of_chunks_equals_the_reference(pair: Pair, count: int) -> None:
    model, reference = pair(count)
    ids = random_ids(26, seed=count)
    output = generate(model, ids, 14)
    sequence = reference.start(ids)
    assert_row_is(output, 0, len(ids), greedy_steps(sequence, 14))
    assert read_by(output) == [sequence.read]


def test_chunk_scores_are_what_the_reference_looks_at(pair: Pair) -> None:
    model, reference = pair()
    rows = [random_ids(27, seed=1), random_ids(4, seed=2), random_ids(13, seed=3)]
    ids, mask = pad_rows(rows)
    for row, scores in zip(rows, model.chunk_scores(ids, attention_mask=mask)):
        sequence = reference.start(row)
        expected = reference.looked_at(sequence.chunks, sequence.window) if sequence.chunks else []
        torch.testing.assert_close(scores.double(), torch.tensor(expected, dtype=torch.float64), **GENERATED)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2, "output_scores": True},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 0.8},
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    ],
    ids=["beams", "samples", "processors"],
)
def test_every_way_of_generating_equals_the_loop_over_the_reference(pair: Pair, options: dict[str, Any]) -> None:
    model, reference = pair()
    ids = random_ids(29)
    torch.manual_seed(0)
    expected = generate(make_oracle(reference, len(ids)), ids, 14, use_cache=False, **options)
    torch.manual_seed(0)
    found = generate(model, ids, 14, **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.cat(found.logits), torch.cat(expected.logits), **GENERATED)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_ragged_batch_choose_for_themselves(pair: Pair, side: str) -> None:
    model, reference = pair()
    rows = [random_ids(27, seed=1), random_ids(14, seed=2), random_ids(5, seed=3), random_ids(7, seed=4)]
    ids, mask = pad_rows(rows, side)
    output = generate(model, ids, 14, attention_mask=mask)
    for number, row in enumerate(rows):
        sequence = reference.start(row)
        assert_row_is(output, number, ids.shape[1], greedy_steps(sequence, 14))
        assert read_by(output)[number] == sequence.read


DOCUMENTS = [random_ids(23, seed=1), random_ids(12, seed=2)]


@pytest.mark.parametrize("storage", ["device", "cpu", "disk"])
def test_two_questions_about_each_document_of_a_memory(pair: Pair, storage: str) -> None:
    model, reference = pair()
    questions = [random_ids(length, seed=length) for length in (4, 9, 1, 15)]
    ids, mask = pad_rows(questions)
    memory = model.encode(DOCUMENTS, storage=storage)
    output = generate(model, ids, 14, attention_mask=mask, memory=memory)
    for number, question in enumerate(questions):
        sequence = reference.start(question, DOCUMENTS[number // 2])
        assert_row_is(output, number, ids.shape[1], greedy_steps(sequence, 14))
        assert read_by(output)[number] == sequence.read


def test_beams_about_two_documents(pair: Pair) -> None:
    model, reference = pair()
    questions = torch.stack([random_ids(4, seed=3), random_ids(4, seed=4)])
    options = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
    oracle = make_oracle(reference, questions.shape[1], [document.tolist() for document in DOCUMENTS])
    expected = generate(oracle, questions, 14, use_cache=False, **options)
    found = generate(model, questions, 14, memory=model.encode(DOCUMENTS), **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, **GENERATED)


def test_a_memory_that_was_extended_saved_and_loaded(pair: Pair, tmp_path: Any) -> None:
    model, reference = pair()
    question, document = random_ids(5, seed=7), random_ids(31, seed=8)
    memory = model.encode(document[18:], memory=model.encode(document[:18]))
    memory.save(tmp_path / "memory")
    loaded = model.load_memory(tmp_path / "memory", storage="cpu")
    for each in (memory, loaded):
        output = generate(model, question, 9, memory=each)
        assert_row_is(output, 0, len(question), reference.greedy(question, 9, document))


def test_a_memory_of_8_bits_chooses_by_what_it_holds() -> None:
    model, reference = make_reading(False)
    question, document = random_ids(5, seed=7), random_ids(31, seed=8)
    memory = model.encode(document, storage="int8")
    output = generate(model, question, 4, memory=memory)
    sequence = reference.start(question, document)
    sequence.read = read_by(output)[0]  # which rounding may change
    sequence.logits = sequence._newest()
    assert_row_is(output, 0, len(question), greedy_steps(sequence, 4))


@pytest.mark.parametrize("length", range(24, 30))
def test_tokens_may_be_taken_back(pair: Pair, length: int) -> None:
    """Assisted decoding: tokens that were guessed wrong are cropped, also just behind a spill."""
    model, reference = pair(1)
    ids = random_ids(8, seed=length).repeat(4)[:length]
    output = generate(model, ids, 18, prompt_lookup_num_tokens=4, attention_mask=ones(ids))
    assert output.sequences[0, length:].tolist() == reference.greedy(ids, 18)[0].tolist()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tokens_of_a_short_input_may_be_taken_back(pair: Pair, family: str) -> None:
    """The first spill comes while drafts are checked."""
    model, reference = pair(1, family)
    ids = random_ids(3, seed=5).repeat(2)
    output = generate(model, ids, 20, prompt_lookup_num_tokens=4, attention_mask=ones(ids))
    assert output.sequences[0, len(ids) :].tolist() == reference.greedy(ids, 20)[0].tolist()


@pytest.mark.parametrize("length", [3, 29])
def test_an_assistant_gives_what_greedy_decoding_gives(pair: Pair, length: int) -> None:
    model, reference = pair(1)
    ids = random_ids(length)
    output = generate(model, ids, 16, assistant_model=make_tiny_model(seed=0))
    assert output.sequences[0, length:].tolist() == reference.greedy(ids, 16)[0].tolist()


@pytest.mark.parametrize("first", [4, 29])
@pytest.mark.parametrize("turn", [1, 2, 8, 20])
def test_a_new_turn_chooses_anew(pair: Pair, first: int, turn: int) -> None:
    model, reference = pair()
    ids = random_ids(first)
    output = generate(model, ids, 6)
    sequence = reference.start(ids)
    tokens, _ = greedy_steps(sequence, 6)
    assert output.sequences[0, first:].tolist() == tokens.tolist()
    more = torch.cat([output.sequences[0], random_ids(turn, seed=turn)])
    sequence.extend(more[first + 5 :].tolist())
    output = generate(model, more, 12, **{CACHE: output[CACHE]})
    assert_row_is(output, 0, len(more), greedy_steps(sequence, 12))
    assert read_by(output) == [sequence.read]


def test_to_go_on_without_a_new_turn_is_as_if_one_had_not_stopped(pair: Pair) -> None:
    model, reference = pair()
    ids = random_ids(29)
    output = generate(model, ids, 3)
    rest = generate(model, output.sequences[0], 11, **{CACHE: output[CACHE]})
    assert rest.sequences[0, 29:].tolist() == reference.greedy(ids, 14)[0].tolist()


def test_rows_of_a_batch_have_turns_of_their_own_length(pair: Pair) -> None:
    model, reference = pair()
    rows, turns = [random_ids(27, seed=1), random_ids(14, seed=2)], [random_ids(1, seed=3), random_ids(6, seed=4)]
    sequences = [reference.start(row) for row in rows]
    expected = sequences[0].append(int(turns[0][0])), sequences[1].extend(turns[1].tolist())
    with torch.no_grad():
        (ids, mask), (more, more_mask) = pad_rows(rows), pad_rows(turns)
        cache = model(ids, attention_mask=mask, use_cache=True)[CACHE]
        found = model(more, attention_mask=more_mask, **{CACHE: cache}).logits[:, -1]
    torch.testing.assert_close(found, torch.stack(expected), **TIGHT)
    assert cache.read_chunks == [sequence.read for sequence in sequences]


@pytest.mark.parametrize("options", [{}, {"read_chunks": 2}], ids=["adapter", "reading"])
def test_turns_of_different_lengths_that_the_loops_would_cut_are_refused(options: dict[str, int]) -> None:
    model = make_focus_model(**options, **SIZES)
    rows = [random_ids(27, seed=1), random_ids(14, seed=2)]
    ids, mask = pad_rows(rows)
    output = generate(model, ids, 3, attention_mask=mask)
    new = output.sequences[:, 27:]
    ids, mask = pad_rows([torch.cat([rows[0], new[0]]), torch.cat([rows[1], new[1], random_ids(5)])])
    with pytest.raises(ValueError, match=r"`input_ids` go on by \[1, 6\] tokens"):
        generate(model, ids, 3, attention_mask=mask, **{CACHE: output[CACHE]})


def test_a_loop_of_ones_own_reads_as_generate_does(pair: Pair) -> None:
    model, reference = pair()
    ids = random_ids(29)
    _, expected = reference.greedy(ids, 12)
    with torch.no_grad():
        output, found = model(ids[None], use_cache=True), []
        for _ in range(12):
            found.append(output.logits[0, -1])
            output = model(found[-1].argmax()[None, None], **{CACHE: output[CACHE]})
    torch.testing.assert_close(torch.stack(found), expected, **TIGHT)


def test_logits_of_a_text_are_those_of_generating_it(pair: Pair) -> None:
    model, reference = pair()
    rows = [random_ids(33, seed=1), random_ids(9, seed=2)]
    ids, mask = pad_rows(rows)
    with torch.no_grad():
        found = model(ids, attention_mask=mask)
        last = model(rows[0][None], logits_to_keep=8).logits[0]
    for number, row in enumerate(rows):
        torch.testing.assert_close(found.logits[number, -len(row) :], reference.all_logits(row), **TIGHT)
    torch.testing.assert_close(last, reference.all_logits(rows[0], first=26), **TIGHT)


def test_an_input_that_fits_the_window_is_the_base_models() -> None:
    model = make_focus_model(read_chunks=1, **SIZES)
    ids = random_ids(5)
    found, expected = generate(model, ids, 5), generate(make_tiny_model(), ids, 5)
    assert torch.equal(torch.cat(found.logits), torch.cat(expected.logits))


def test_chunks_are_freed_as_soon_as_no_other_choice_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    from focus_peft.decoding import generate as generating

    (model, reference), ids, caches = make_reading(False, 1), random_ids(29), []

    def make_cache(*args: Any) -> Any:
        caches.append(make(*args))
        return caches[-1]

    make = generating._new_cache
    monkeypatch.setattr(generating, "_new_cache", make_cache)
    for new_tokens, kept in ((5, 0), (6, 1)):  # the sixth would make the window spill
        output = generate(model, ids, new_tokens, return_dict_in_generate=False)
        assert output[0, 29:].tolist() == reference.greedy(ids, new_tokens)[0].tolist()
        assert len(caches[-1].chunks) == kept
    generate(model, ids, 5)
    assert len(caches[-1].chunks) == 1  # whoever has the cache may go on


def test_the_base_model_alone_reads_new_tokens() -> None:
    model = make_focus_model(keep_candidates=False, **SIZES)
    shapes: list[tuple[int, ...]] = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _, args, __: shapes.append(tuple(args[0].shape))
    )
    generate(model, random_ids(31, seed=2), 4, read_chunks=2)
    handle.remove()
    # (the check of the first use,) chunks, BOS and a prompt of three, local pass; then the text, of BOS,
    # two chunks and the window
    assert shapes[-7:] == [(5, 5), (5, 4), (1, 7), (1, 17), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("family", HIDDEN)
def test_a_model_whose_attention_cannot_be_seen_is_refused(family: str) -> None:
    model = make_focus_model(family)
    with pytest.raises(ValueError, match="`read_chunks` needs to see what tokens attend to"):
        generate(model, random_ids(29), 2, read_chunks=1)


def test_exact_decoding_is_refused() -> None:
    model = make_focus_model(**SIZES)
    with pytest.raises(ValueError, match="`decoding` is 'exact' and `read_chunks` is 2"):
        generate(model, random_ids(29), 2, read_chunks=2, decoding="exact")


@pytest.mark.parametrize(
    ("keep", "most", "said"),
    [
        (False, 4, r"`read_chunks` is 5: 5 chunks .* need 36 places, .* 32 positions"),  # 20 + BOS + 6 + 4
        (True, 3, r"8 candidates, which with 20 tokens of chunks in full, .* need 35 places, .*`read_chunks`"),
    ],
    ids=["alone", "behind candidates"],
)
def test_too_many_chunks_are_refused_before_anything_is_read(keep: bool, most: int, said: str) -> None:
    model = make_focus_model(base={"max_position_embeddings": 32}, keep_candidates=keep, **SIZES)
    ids = random_ids(45)
    generate(model, ids, 4, read_chunks=most)
    passes: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, args, __: passes.append(1))
    with pytest.raises(ValueError, match=said):
        generate(model, ids, 4, read_chunks=most + 1)
    handle.remove()
    assert not passes


def test_a_loop_of_ones_own_that_leaves_the_positions_is_refused() -> None:
    model = make_focus_model(base={"max_position_embeddings": 32}, keep_candidates=False, **SIZES)
    cache = model(random_ids(45)[None], use_cache=True, read_chunks=5)[CACHE]
    with pytest.raises(ValueError, match=r"`read_chunks` is 5, .* 33 tokens, .* 32 positions"):
        for token in random_ids(3):
            model(token[None, None], **{CACHE: cache})


def test_it_cannot_be_changed_while_a_cache_goes_on(pair: Pair) -> None:
    model, _ = pair()
    output = generate(model, random_ids(29), 3)
    with pytest.raises(ValueError, match="`read_chunks` cannot be changed"):
        generate(model, output.sequences[0], 3, read_chunks=1, **{CACHE: output[CACHE]})
