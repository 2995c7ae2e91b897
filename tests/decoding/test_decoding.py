"""
Both decoding modes equal the slow reference, however generation is done, and so does every way to hand over a memory.

Models are tiny and random; in float64 the two agree to 1e-9. `generate` hands out logits in float32, so these agree to
1e-5.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from conftest import BOS, EOS, make_focus_model, make_tiny_model, make_tiny_tokenizer, pad_rows, random_ids
from families import IS_OLD
from generating import GENERATED, MODES, TIGHT, assert_row_is, generate, make_pair, ones
from peft import PeftModel
from reference import Reference, SlowSequence, greedy_steps, make_oracle
from refusal import refusal
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

from focus_peft.frozen.compat import CACHE, OLDER


@pytest.fixture(params=MODES)
def decoding(request: pytest.FixtureRequest) -> str:
    return request.param


# ---- one sequence


def test_forward_equals_the_reference_at_every_token(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    ids = random_ids(37)
    with torch.no_grad():
        logits = model(ids[None]).logits
    assert logits.shape == (1, 37, 120)
    torch.testing.assert_close(logits[0], reference.all_logits(ids), **TIGHT)


@pytest.mark.parametrize("keep", [1, 3, 20])
def test_forward_takes_the_kept_tokens_for_the_newest_and_the_others_for_the_input(decoding: str, keep: int) -> None:
    model, reference = make_pair(decoding=decoding)
    ids = random_ids(37)
    with torch.no_grad():
        logits = model(ids[None], logits_to_keep=keep).logits
    torch.testing.assert_close(logits[0], reference.all_logits(ids, first=38 - keep), **TIGHT)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "opt"])
def test_low_rank_twins_equal_the_reference(family: str, decoding: str) -> None:
    model, reference = make_pair(family, decoding=decoding, r=4, alpha=6.0)
    ids = random_ids(29, seed=4)
    assert_row_is(generate(model, ids, 10), 0, len(ids), reference.greedy(ids, 10))


@pytest.mark.parametrize("seed", range(16))
def test_any_sizes_equal_the_reference(seed: int) -> None:
    draw = random.Random(seed)
    local = draw.randint(1, 12)
    fields = {
        "chunk_size": draw.choice([2, 3, 5, 8, 12]),
        "local_size": local,
        "prompt_size": draw.randint(1, local),
        "add_bos": draw.random() < 0.7,
        "decoding": draw.choice(MODES),
        "chunk_batch_size": draw.choice([None, 1, 3]),
    }
    model, reference = make_pair(draw.choice(["llama", "gemma3", "gpt2"]), **fields)
    ids = random_ids(draw.randint(1, 20), seed=seed)
    ids[torch.rand(len(ids), generator=torch.Generator().manual_seed(seed)) < 0.2] = BOS
    memory = random_ids(draw.randint(1, 16), seed=seed + 100) if draw.random() < 0.5 else None
    encoded = model.encode(memory) if memory is not None else None
    with torch.no_grad():
        logits = model(ids[None], memory=encoded).logits[0]
    torch.testing.assert_close(logits, reference.all_logits(ids, memory), **TIGHT)
    assert_row_is(generate(model, ids, 8, memory=encoded), 0, len(ids), reference.greedy(ids, 8, memory))


@pytest.mark.parametrize("length", [13, 3], ids=["memory", "no memory"])
def test_generation_spills_into_the_memory_again_and_again(decoding: str, length: int) -> None:
    model, reference = make_pair(decoding=decoding, chunk_size=8, local_size=8, prompt_size=4)
    ids = random_ids(length)
    assert_row_is(generate(model, ids, 26), 0, length, reference.greedy(ids, 26))  # three times, or twice


# ---- BOS


@pytest.mark.parametrize("position", [22, 26], ids=["window", "prompt"])
def test_bos_is_not_doubled_where_the_text_has_one(decoding: str, position: int) -> None:
    model, reference = make_pair(decoding=decoding, local_size=8, prompt_size=4)
    ids = random_ids(30)
    ids[position] = BOS  # where the local window, or the dynamic prompt, begins
    assert_row_is(generate(model, ids), 0, len(ids), reference.greedy(ids, 12))


def test_no_bos_is_added_where_the_user_or_the_model_has_none(decoding: str) -> None:
    ids = random_ids(30)
    refused, reference = make_pair(decoding=decoding, add_bos=False)
    assert reference.sizes.bos is None
    expected = reference.greedy(ids, 12)
    assert_row_is(generate(refused, ids), 0, len(ids), expected)
    absent, _ = make_pair(decoding=decoding, base={"bos_token_id": None})
    assert_row_is(generate(absent, ids), 0, len(ids), expected)


# ---- batches


@pytest.mark.parametrize("drafts", [3, 6])
def test_drafts_taken_back_across_the_first_spill_bring_no_candidates(decoding: str, drafts: int) -> None:
    model, reference = make_pair("phi3", decoding=decoding, chunk_size=3, local_size=12, prompt_size=8)
    ids = random_ids(4, seed=3).repeat(3)[:11]
    output = generate(model, ids, 18, prompt_lookup_num_tokens=drafts)
    assert_row_is(output, 0, len(ids), reference.greedy(ids, 18))


def test_rows_spill_at_different_times(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding, chunk_size=3)
    documents, questions = (
        [random_ids(3, seed=1), random_ids(9, seed=2)],
        [random_ids(3, seed=3), random_ids(10, seed=4)],
    )
    ids, mask = pad_rows(questions)
    output = generate(model, ids, attention_mask=mask, memory=model.encode(documents))
    for row, question in enumerate(questions):
        assert_row_is(output, row, ids.shape[1], reference.greedy(question, 12, documents[row]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_of_a_ragged_batch_equals_each_row_alone(decoding: str, side: str) -> None:
    model, reference = make_pair(decoding=decoding)
    rows = [random_ids(length, seed=length) for length in (19, 1, 8, 14)]
    ids, mask = pad_rows(rows, side)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    assert logits.shape[:2] == ids.shape
    for number, row in enumerate(rows):
        torch.testing.assert_close(logits[number][mask[number].bool()], reference.all_logits(row), **TIGHT)


def test_a_row_that_stops_early_does_not_disturb_the_others(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    rows = [random_ids(length, seed=length) for length in (20, 12)]
    ids, mask = pad_rows(rows)
    alone = [reference.greedy(row, 12)[0].tolist() for row in rows]
    stop = next(token for token in alone[0] if token not in alone[1])
    output = generate(model, ids, 12, attention_mask=mask, eos_token_id=stop)
    kept = alone[0][: alone[0].index(stop) + 1]
    assert output.sequences[0, ids.shape[1] :].tolist() == kept + [0] * (12 - len(kept))
    assert output.sequences[1, ids.shape[1] :].tolist() == alone[1]


def test_a_pad_token_inside_the_text_is_text_where_there_is_no_mask(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    ids = random_ids(30)
    ids[[5, 27]] = 0
    output = generate(model, torch.cat([torch.zeros(3, dtype=torch.long), ids]))  # padding on the left is still seen
    assert_row_is(output, 0, 33, reference.greedy(ids, 12))


# ---- transformers' ways of generating


def compare_with_oracle(
    model: PeftModel,
    reference: Reference,
    rows: list[torch.Tensor],
    memories: list[torch.Tensor] | None = None,
    seed: int | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Generate with the model, and with transformers' own loop over the reference's logits; both outputs, found
    equal.
    """
    ids, mask = pad_rows(rows)
    options = {"max_new_tokens": 9, "return_dict_in_generate": True, "attention_mask": mask, **options}
    oracle = make_oracle(reference, ids.shape[1], memories)
    if seed is not None:
        torch.manual_seed(seed)
    expected = oracle.generate(input_ids=ids, use_cache=False, **options)
    if seed is not None:
        torch.manual_seed(seed)
    memory = model.encode(list(memories)) if memories is not None else None
    found = model.generate(input_ids=ids, memory=memory, **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    return found, expected


@pytest.mark.parametrize("shared_memory", [False, True], ids=["split", "memory"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"num_beams": 2, "do_sample": True},
        {"num_return_sequences": 3, "do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95},
    ],
    ids=["beams", "beams of samples", "samples"],
)
def test_beams_and_samples_equal_those_over_the_reference(
    decoding: str, options: dict[str, Any], shared_memory: bool
) -> None:
    model, reference = make_pair(decoding=decoding)
    rows = [random_ids(length, seed=length) for length in ((5, 9) if shared_memory else (20, 6))]
    memories = [random_ids(13, seed=7), random_ids(5, seed=8)] if shared_memory else None
    found, expected = compare_with_oracle(model, reference, rows, memories, seed=5, output_scores=True, **options)
    assert len({tuple(row) for row in found.sequences.tolist()}) == len(found.sequences)
    if "num_beams" in options:
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, **GENERATED)
        assert found.beam_indices.tolist() == expected.beam_indices.tolist()


class BanEvenTokens(LogitsProcessor):
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.clone()
        scores[:, ::2] = -float("inf")
        return scores


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"bad_words_ids": [[number] for number in range(3, 80)]},
        {"min_new_tokens": 7, "eos_token_id": list(range(3, 60)), "pad_token_id": 0},
        {"logits_processor": LogitsProcessorList([BanEvenTokens()])},
        {"suppress_tokens": list(range(3, 60)), "forced_eos_token_id": EOS},
    ],
    ids=lambda options: next(iter(options)),
)
def test_logits_processors_see_what_they_see_over_the_reference(decoding: str, options: dict[str, Any]) -> None:
    model, reference = make_pair(decoding=decoding)
    rows = [random_ids(18, seed=1), random_ids(6, seed=2)]
    plain = generate(model, pad_rows(rows)[0], 9, attention_mask=pad_rows(rows)[1]).sequences
    found, expected = compare_with_oracle(
        model, reference, rows, do_sample=False, output_scores=True, output_logits=True, **options
    )
    torch.testing.assert_close(torch.stack(found.scores), torch.stack(expected.scores), **GENERATED)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), **GENERATED)
    assert found.sequences.tolist() != plain.tolist()  # the option had something to do


class CountingCriteria(StoppingCriteria):
    """Counts how often the loop asks it, and stops generation at call number `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        self.calls += 1
        return torch.full((len(input_ids),), self.calls == self.stop_at)


def test_stopping_criteria_stop_generation(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    ids = random_ids(22)
    criteria = StoppingCriteriaList([CountingCriteria(stop_at=3)])
    output = generate(model, ids, stopping_criteria=criteria)
    assert output.sequences[0, 22:].tolist() == reference.greedy(ids, 3)[0].tolist()


TEXT = "what the window spills is kept. "


def test_stop_strings_stop_generation(decoding: str) -> None:
    tokenizer = make_tiny_tokenizer()
    model, reference = make_pair(base={"vocab_size": len(tokenizer)}, decoding=decoding)
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])
    tokens = reference.greedy(ids, 14)[0].tolist()
    printable = [number for number, token in enumerate(tokens) if tokenizer.decode([token]).isascii()]
    stop = next(number for number in printable if number >= 3 and tokens[number] not in tokens[:number])
    output = generate(model, ids, 14, stop_strings=[tokenizer.decode([tokens[stop]])], tokenizer=tokenizer)
    assert output.sequences[0, len(ids) :].tolist() == tokens[: stop + 1]


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.values: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.values += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_every_token_as_it_comes(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    ids, document, streamer = random_ids(7), random_ids(20, seed=1), Collector()
    model.generate(
        input_ids=ids[None], memory=model.encode(document), max_new_tokens=12, do_sample=False, streamer=streamer
    )
    assert streamer.values == ids.tolist() + reference.greedy(ids, 12, document)[0].tolist()
    assert streamer.ended


# ---- assisted decoding


@pytest.mark.parametrize("length", [4, 13, 20], ids=["no memory", "short memory", "memory"])
def test_assisted_decoding_equals_greedy_decoding_across_spills(decoding: str, length: int) -> None:
    model, reference = make_pair(decoding=decoding)
    ids = random_ids(length)
    expected = reference.greedy(ids, 15)  # a window of four tokens spills at the twelfth, one of eight at the eighth
    for seed in (0, 1):  # the base model itself, which is right for a while, and one that never is
        assistant = make_tiny_model(seed=seed)
        assistant.generation_config.update(
            num_assistant_tokens=5, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
        )
        assert_row_is(generate(model, ids, 15, assistant_model=assistant), 0, length, expected)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_prompt_lookup_equals_greedy_decoding_across_spills(family: str, decoding: str) -> None:
    model, reference = make_pair(family, decoding=decoding)
    ids = random_ids(9).repeat(2)  # something to look up
    expected = reference.greedy(ids, 18)  # spills twice
    for count in (2, 6):
        output = generate(model, ids, 18, prompt_lookup_num_tokens=count)
        if IS_OLD:  # older transformers may go past `max_new_tokens` here, with any model
            output.sequences, output.logits = output.sequences[:, : len(ids) + 18], output.logits[:18]
        assert_row_is(output, 0, len(ids), expected)


def test_assisted_decoding_on_a_memory_equals_greedy_decoding(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    document, ids = random_ids(13, seed=1), random_ids(5).repeat(2)
    assistant, memory = make_tiny_model(), model.encode(document)
    expected = reference.greedy(ids, 12, document)
    assert_row_is(generate(model, ids, 12, memory=memory, assistant_model=assistant), 0, len(ids), expected)
    assert_row_is(generate(model, ids, 12, memory=memory, prompt_lookup_num_tokens=4), 0, len(ids), expected)


@pytest.mark.parametrize("length", [4, 13, 20])
def test_a_draft_that_is_always_right_is_taken_several_tokens_at_a_time(decoding: str, length: int) -> None:
    model, reference = make_pair(decoding=decoding)
    ids = random_ids(length)
    assistant = make_oracle(reference, length)  # drafts with the very logits that verify

    def draft(self: PreTrainedModel, **kwargs: Any) -> Any:
        # the loop passes on the verifier's cache options, and a mask that it lets grow only with a cache
        kept = {name: value for name, value in kwargs.items() if name not in ("attention_mask", CACHE)}
        return super(type(self), self).generate(**{**kept, "use_cache": False})

    assistant.__class__ = type("Draft", (type(assistant),), {"generate": draft})
    assistant.generation_config.update(
        num_assistant_tokens=5, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    rounds = CountingCriteria()
    output = generate(model, ids, 24, assistant_model=assistant, stopping_criteria=StoppingCriteriaList([rounds]))
    assert_row_is(output, 0, length, reference.greedy(ids, 24))
    assert rounds.calls <= (8 if IS_OLD else 5)  # older transformers draft fewer tokens at a time


# ---- pipelines and chats


def test_a_pipeline_reads_a_batch_of_prompts() -> None:
    tokenizer = make_tiny_tokenizer()
    model, reference = make_pair(base={"vocab_size": len(tokenizer)})
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    texts = [TEXT, "short", TEXT[:20]]
    found = pipe(texts, batch_size=3, max_new_tokens=10, do_sample=False, return_full_text=False)
    for text, answers in zip(texts, found, strict=True):
        tokens = reference.greedy(tokenizer(text)["input_ids"], 10)[0]
        assert answers[0]["generated_text"] == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_chat_goes_through_its_template(decoding: str) -> None:
    tokenizer = make_tiny_tokenizer()
    model, reference = make_pair(base={"vocab_size": len(tokenizer)}, decoding=decoding)
    chat = [{"role": "user", "content": TEXT}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = reference.greedy(ids["input_ids"][0], 10)[0]
    output = model.generate(**ids, max_new_tokens=10, do_sample=False)
    assert output[0, ids["input_ids"].shape[1] :].tolist() == tokens.tolist()
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    answer = pipe(chat, max_new_tokens=10, do_sample=False)[0]["generated_text"][-1]
    assert answer == {"role": "assistant", "content": tokenizer.decode(tokens, skip_special_tokens=True)}


# ---- memories


def test_a_memory_is_encoded_once_and_asked_twice_in_either_order(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    document, questions = random_ids(29, seed=1), [random_ids(5, seed=2), random_ids(7, seed=3)]
    expected = [reference.greedy(question, 12, document) for question in questions]
    for order in ([0, 1, 0], [1, 0]):
        memory = model.encode(document)
        assert (memory.num_documents, memory.num_chunks, memory.num_tokens) == (1, 4, 29)
        for number in order:  # 12 tokens spill: what spills must not get into the memory that the next question sees
            output = generate(model, questions[number], 12, memory=memory)
            assert_row_is(output, 0, len(questions[number]), expected[number])
        assert (memory.num_documents, memory.num_chunks, memory.num_tokens) == (1, 4, 29)


def test_several_documents_each_answer_their_own_questions(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    documents = [random_ids(length, seed=length) for length in (29, 3, 16)]
    questions = [random_ids(length, seed=length) for length in (5, 8, 2, 11, 7, 1)]
    expected = [reference.greedy(question, 12, documents[row // 2]) for row, question in enumerate(questions)]
    memory = model.encode(documents)
    assert (memory.num_documents, memory.num_chunks, memory.num_tokens) == (3, 4 + 1 + 2, 48)
    for side in ("left", "right"):
        ids, mask = pad_rows(questions, side)
        output = generate(model, ids, 12, attention_mask=mask, memory=memory)
        for row, alone in enumerate(expected):
            assert_row_is(output, row, ids.shape[1], alone)


@pytest.mark.parametrize("lengths", [(6, 6, 6, 6), (5, 8, 2, 11)], ids=["even", "ragged"])
def test_forward_reads_several_questions_on_several_documents(decoding: str, lengths: tuple[int, ...]) -> None:
    model, reference = make_pair(decoding=decoding)
    documents = [random_ids(length, seed=length) for length in (29, 3)]
    questions = [random_ids(length, seed=number) for number, length in enumerate(lengths)]
    ids, mask = pad_rows(questions)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, memory=model.encode(documents)).logits
    for row, question in enumerate(questions):
        expected = reference.all_logits(question, documents[row // 2])
        torch.testing.assert_close(logits[row][mask[row].bool()], expected, **TIGHT)


@pytest.mark.parametrize("length", [9, 16, 25])
def test_a_question_longer_than_the_local_window_goes_partly_into_the_memory(decoding: str, length: int) -> None:
    model, reference = make_pair(decoding=decoding)
    document, question = random_ids(13, seed=1), random_ids(length, seed=2)
    memory = model.encode(document)
    expected = reference.greedy(question, 12, document)
    assert_row_is(generate(model, question, memory=memory), 0, length, expected)
    assert memory.num_tokens == 13


@pytest.mark.parametrize(
    ("family", "first"),
    [("llama", 8), ("llama", 16), ("llama", 11), ("llama", 3), ("gpt2", 11)],
    ids=["boundary", "second boundary", "inside", "first chunk", "learned positions"],
)
def test_an_extended_memory_equals_a_memory_made_at_once(family: str, decoding: str, first: int) -> None:
    model, reference = make_pair(family, decoding=decoding)
    document, question = random_ids(29, seed=1), random_ids(6, seed=2)
    start = model.encode(document[:first])
    extended = model.encode(document[first:], memory=start)
    assert (extended.num_documents, extended.num_chunks, extended.num_tokens) == (1, 4, 29)
    assert_row_is(generate(model, question, memory=extended), 0, 6, reference.greedy(question, 12, document))
    # the shorter memory is still what it was
    assert start.num_tokens == first
    assert_row_is(generate(model, question, memory=start), 0, 6, reference.greedy(question, 12, document[:first]))


def test_every_document_of_a_memory_is_extended_with_its_own_text(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    documents = [random_ids(29, seed=1), random_ids(17, seed=2)]
    memory = model.encode([documents[0][:8], documents[1][:5]])
    memory = model.encode([documents[0][8:21], documents[1][5:16]], memory=memory)
    memory = model.encode([documents[0][21:], documents[1][16:]], memory=memory)
    questions = torch.stack([random_ids(6, seed=3), random_ids(6, seed=4)])
    output = generate(model, questions, memory=memory)
    for row, document in enumerate(documents):
        assert_row_is(output, row, 6, reference.greedy(questions[row], 12, document))


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 4}, {"num_return_sequences": 4, "do_sample": True}],
    ids=lambda options: next(iter(options)),
)
def test_rows_that_share_a_memory_share_its_storage(decoding: str, options: dict[str, Any]) -> None:
    model, _ = make_pair(decoding=decoding)
    memory = model.encode(random_ids(29))
    before, size = [keys.data_ptr() for keys, _ in memory.store.layers], memory.nbytes
    output = generate(model, random_ids(5, seed=1), 4, memory=memory, **options)
    assert output[CACHE].memory is memory
    assert ([keys.data_ptr() for keys, _ in memory.store.layers], memory.nbytes) == (before, size)
    # what a split cuts from a long input is stored once too
    output = generate(model, random_ids(37), 4, **options)
    assert len(output[CACHE].streams) == 4
    assert all(len(keys) == 4 for keys, _ in output[CACHE].chunks.store.layers)


def test_a_loaded_memory_can_be_extended(tmp_path: Any) -> None:
    model, reference = make_pair()
    document, question = random_ids(29, seed=1), random_ids(6, seed=2)
    model.encode(document[:11]).save(tmp_path / "memory")
    memory = model.encode(document[11:], memory=model.load_memory(tmp_path / "memory"))
    assert_row_is(generate(model, question, memory=memory), 0, 6, reference.greedy(question, 12, document))


# ---- conversations


def next_turn(model: PeftModel, output: Any, sequence: SlowSequence, news: torch.Tensor, count: int) -> Any:
    """Go on from the cache of an output, as the reference goes on."""
    full = torch.cat([output.sequences[0], news])
    output = generate(model, full, count, attention_mask=ones(full), **{CACHE: output[CACHE]})
    sequence.extend(full[-len(news) - 1 :])  # the last generated token has not been read yet
    assert_row_is(output, 0, len(full), greedy_steps(sequence, count))
    return output


@pytest.mark.parametrize("turn", [1, 3, 12, 30], ids=lambda turn: f"{turn} new tokens")
@pytest.mark.parametrize("length", [4, 25], ids=["no memory", "memory"])
def test_a_conversation_goes_on_from_its_cache(decoding: str, length: int, turn: int) -> None:
    model, reference = make_pair(decoding=decoding)
    ids = random_ids(length, seed=1)
    first, sequence = generate(model, ids, 6), reference.start(ids)
    assert_row_is(first, 0, length, greedy_steps(sequence, 6))
    next_turn(model, first, sequence, random_ids(turn, seed=2), 9)


def test_two_conversations_on_one_memory_take_turns(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    document, questions = random_ids(21, seed=3), [random_ids(5, seed=1), random_ids(3, seed=2)]
    memory = model.encode(document)
    outputs = [generate(model, ids, 6, memory=memory) for ids in questions]
    sequences = [reference.start(ids, document) for ids in questions]
    for sequence in sequences:
        greedy_steps(sequence, 6)
    for turn in range(3):
        for number, sequence in enumerate(sequences):
            news = random_ids(4, seed=10 * turn + number)
            outputs[number] = next_turn(model, outputs[number], sequence, news, 6)
    assert memory.num_tokens == 21


def test_a_ragged_batch_of_conversations_goes_on_from_its_cache(decoding: str) -> None:
    model, reference = make_pair(decoding=decoding)
    rows = [random_ids(length, seed=length) for length in (25, 4, 9)]
    ids, mask = pad_rows(rows)
    first = generate(model, ids, 6, attention_mask=mask)
    news = torch.stack([random_ids(5, seed=number) for number in range(3)])
    full = torch.cat([first.sequences, news], dim=1)
    full_mask = torch.cat([mask, mask.new_ones(3, 11)], dim=1)
    second = generate(model, full, 12, attention_mask=full_mask, **{CACHE: first[CACHE]})
    for number, row in enumerate(rows):
        sequence = reference.start(row)
        tokens, _ = greedy_steps(sequence, 6)
        sequence.extend([int(tokens[-1]), *news[number].tolist()])
        assert_row_is(second, number, full.shape[1], greedy_steps(sequence, 12))


# ---- refusals


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({CACHE: EncoderDecoderCache(DynamicCache(), DynamicCache())}, CACHE),
        ({"use_cache": False}, "use_cache"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"cache_implementation": "paged"}, "cache_implementation"),
        ({"token_healing": True}, "token_healing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_with_a_sentence(options: dict[str, Any], named: str) -> None:
    model = make_focus_model()
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=f"`{named}") as caught:
        generate(model, random_ids(20), **options)
    assert str(caught.value).rstrip().endswith(".")


def test_a_cache_of_another_conversation_is_refused() -> None:
    model = make_focus_model()
    first = generate(model, random_ids(20, seed=1), 4)
    with pytest.raises(ValueError, match=f"`{CACHE}`"):
        generate(model, random_ids(30, seed=2), **{CACHE: first[CACHE]})


def test_a_cache_may_be_given_by_its_older_name_but_not_by_both() -> None:
    model = make_focus_model()
    first, second = (generate(model, random_ids(20, seed=1), 4) for _ in range(2))
    full = torch.cat([first.sequences[0], random_ids(15, seed=9)])
    found = generate(model, full, 4, past_key_values=first[CACHE])
    expected = generate(model, full, 4, **{CACHE: second[CACHE]})
    assert torch.equal(found.sequences, expected.sequences) and found[CACHE] is first[CACHE]
    if CACHE != OLDER:
        with refusal(f"`{CACHE}`", f"`{OLDER}`"):
            generate(model, found.sequences, **{CACHE: found[CACHE], OLDER: found[CACHE]})


def test_a_cache_and_a_memory_at_once_are_refused() -> None:
    model = make_focus_model()
    first = generate(model, random_ids(20, seed=1), 4)
    with pytest.raises(ValueError, match="`memory`"):
        generate(model, first.sequences, **{CACHE: first[CACHE]}, memory=model.encode(random_ids(9)))
