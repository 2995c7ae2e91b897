"""What the newest token looks at, and renewing the candidates of those chunks only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_focus_model, make_tiny_model, pad_rows, random_ids
from families import SEES_TABLES
from generating import MODES, assert_row_is, generate, make_pair, ones
from reference import Reference, make_oracle


SIZES = {"chunk_size": 5, "local_size": 6, "prompt_size": 3}
# with soft-capping, sinks, latents, sliding windows, and keys of as many heads as queries
FAMILIES = ["llama", "gemma2", "gpt_oss", "deepseek_v3", "mistral", "olmo2", "gpt_neox", "opt"]
FAMILIES += ["gptj", "codegen"] if SEES_TABLES else []

each_mode = pytest.mark.parametrize("decoding", MODES)


@each_mode
@pytest.mark.parametrize("family", FAMILIES)
def test_chunk_attention_is_what_eager_attention_returns(family: str, decoding: str) -> None:
    model, reference = make_pair(family, decoding=decoding, top_chunks=1, **SIZES)
    ids = random_ids(29)
    (found,) = model.chunk_attention(ids[None])
    sequence = reference.start(ids)
    local = sequence._local()
    if decoding == "exact":
        expected = reference.plain.looked_at(local, sequence._position(0), sequence.candidates, None)
    else:
        # the newest token is in the past by now
        past = [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in sequence.local_past]
        place = sequence._position(len(local) - 1)
        expected = reference.plain.looked_at(local[-1:], place, sequence.candidates, past)
    assert found.shape == (5,)
    assert 0 < float(found.sum()) < 1
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-9)


def test_chunk_attention_of_a_batch_and_of_a_memory_is_that_of_each_row() -> None:
    model = make_focus_model(**SIZES)
    rows = [random_ids(27, seed=1), random_ids(4, seed=2), random_ids(13, seed=3)]
    ids, mask = pad_rows(rows)
    together = model.chunk_attention(ids, attention_mask=mask)
    assert [len(shares) for shares in together] == [5, 0, 2]
    for row, shares in zip(rows, together):
        assert torch.equal(shares, model.chunk_attention(row[None])[0])
    memory = model.encode(rows[0][:20])
    held = model.chunk_attention(rows[0][None, 20:], memory=memory)[0]
    assert len(held) == 5  # four of the memory, one that the question spilled
    before = model.chunk_attention(rows[0][None], local_size=7)[0]
    torch.testing.assert_close(model.chunk_attention(rows[0][None, 20:], memory=memory, local_size=7)[0], before)


@each_mode
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_chunks_that_were_looked_at_are_renewed(family: str, decoding: str) -> None:
    model, reference = make_pair(family, decoding=decoding, top_chunks=2, **SIZES)
    ids = random_ids(29)
    tolerance = {"rtol": 0, "atol": 1e-5}
    assert_row_is(generate(model, ids, 12), 0, len(ids), reference.greedy(ids, 12), tolerance)  # it spills twice


@pytest.mark.parametrize("top", [1, 3, 4, 99])
@each_mode
def test_any_number_of_chunks_equals_the_reference(top: int, decoding: str) -> None:
    model, reference = make_pair(decoding=decoding, top_chunks=top, refresh_interval=2, **SIZES)
    ids = random_ids(26, seed=top)
    assert_row_is(generate(model, ids, 14), 0, len(ids), reference.greedy(ids, 14))
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    torch.testing.assert_close(logits, reference.all_logits(ids), rtol=0, atol=1e-9)


def test_as_many_as_there_are_is_the_default() -> None:
    model = make_focus_model(**SIZES)
    ids = random_ids(29)
    every, default = generate(model, ids, 4, top_chunks=5), generate(model, ids, 4)
    assert torch.equal(torch.cat(every.logits), torch.cat(default.logits))
    some = generate(model, ids, 4, top_chunks=1)
    assert torch.equal(some.logits[0], default.logits[0])  # all candidates are new behind the input
    assert not torch.allclose(some.logits[1], default.logits[1])


@each_mode
def test_with_a_memory_and_beams(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding, top_chunks=2, **SIZES)
    documents = [random_ids(23, seed=1), random_ids(12, seed=2)]
    questions = torch.stack([random_ids(4, seed=3), random_ids(4, seed=4)])
    options = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
    oracle = make_oracle(reference, questions.shape[1], [document.tolist() for document in documents])
    expected = generate(oracle, questions, 9, use_cache=False, **options)
    found = generate(model, questions, 9, memory=model.encode(documents), **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=0, atol=1e-5)


def test_two_questions_take_turns_on_one_memory() -> None:
    """Each finds its prompt gone from the rows, and feeds it again to those that it renews."""
    model, reference = make_pair(top_chunks=1, **SIZES)
    document, first, second = random_ids(23, seed=1), random_ids(4, seed=2), random_ids(5, seed=3)
    memory = model.encode(document)

    class Interrupting:
        """Asks another question after every token."""

        def put(self, value: Any) -> None:
            generate(model, second, 2, memory=memory)

        def end(self) -> None: ...

    output = generate(model, first, 6, memory=memory, streamer=Interrupting())
    assert_row_is(output, 0, len(first), reference.greedy(first, 6, document))


@pytest.mark.parametrize("length", [24, 25, 26, 27])
def test_tokens_may_be_taken_back(length: int) -> None:
    """Assisted decoding: tokens that were guessed wrong are cropped, also just behind a spill."""
    model, reference = make_pair(top_chunks=2, **SIZES)
    ids = random_ids(8, seed=length).repeat(4)[:length]
    plain = reference.greedy(ids, 14)
    output = generate(model, ids, 14, prompt_lookup_num_tokens=3, attention_mask=ones(ids))
    assert output.sequences[0, length:].tolist() == plain[0].tolist()


def test_rows_of_a_ragged_batch_choose_for_themselves() -> None:
    model, reference = make_pair(top_chunks=1, **SIZES)
    rows = [random_ids(27, seed=1), random_ids(14, seed=2), random_ids(5, seed=3)]
    ids, mask = pad_rows(rows)
    output = generate(model, ids, 9, attention_mask=mask)
    for number, row in enumerate(rows):
        assert_row_is(output, number, ids.shape[1], reference.greedy(row, 9))


def test_the_other_chunks_are_not_read() -> None:
    model = make_focus_model(**SIZES)
    rows: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    generate(model, random_ids(29), 4, top_chunks=2)
    handle.remove()
    # (the check of the first use,) chunks, then for each token the chunk pass and the local pass
    assert rows[-9:] == [5, 5, 1, 2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize("family", ["bloom", *([] if SEES_TABLES else ["gptj", "codegen"])])
def test_a_model_whose_attention_cannot_be_seen_is_refused(family: str) -> None:
    model = make_focus_model(family)
    with pytest.raises(ValueError, match="`top_chunks` needs to see what tokens attend to"):
        generate(model, random_ids(29), 2, top_chunks=1)
    with pytest.raises(ValueError, match="`chunk_attention` needs to see"):
        model.chunk_attention(random_ids(29)[None])


def test_the_reference_chooses_by_looking() -> None:
    """The slow reference is no copy of the code under test: with one chunk chosen, the others' candidates stay."""
    model = make_focus_model(top_chunks=1, **SIZES)
    reference = Reference(make_tiny_model(), model)
    sequence = reference.start(random_ids(29))
    before = [keys.clone() for keys, _ in sequence.candidates]
    sequence.append(7)
    changed = [
        not torch.equal(a[:, :, n], b[:, :, n])
        for a, (b, _) in zip(before[-1:], sequence.candidates[-1:])
        for n in range(5)
    ]
    assert sum(changed) == 1 and changed[sequence.chosen[0]]


@pytest.mark.parametrize("storage", ["cpu", "disk"])
def test_wherever_the_chunks_are_kept(storage: str) -> None:
    model = make_focus_model(top_chunks=2, **SIZES)
    ids = random_ids(29)
    found, expected = (generate(model, ids, 9, storage=where) for where in (storage, "device"))
    assert torch.equal(torch.cat(found.logits), torch.cat(expected.logits))
