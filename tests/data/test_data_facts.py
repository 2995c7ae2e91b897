"""Made-up facts: hidden in real documents, asked for at the end, never in the words of a benchmark."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model
from refusal import refusal
from test_data import TOKENIZER, prepared, text, texts, write_texts

from focus_peft.config import IGNORE
from focus_peft.data import DataConfig, DocumentCollator, fact_samples
from focus_peft.data.facts import (
    NAMES,
    NOUNS,
    QUESTIONS,
    QUESTIONS_FOR_ALL,
    SCENE_QUESTIONS,
    SCENES,
    STATEMENTS,
    draw_facts,
)


@pytest.fixture
def _no_repeated_excerpts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fact_samples, "REPEATED", 0.0)


def facts_of(tmp_path: Path, count: int = 12, **fields: Any) -> Any:
    """Training data of nothing but facts, hidden in so many documents."""
    lender = {"path": str(write_texts(tmp_path, count, 300)), "weight": 0}
    return prepared(tmp_path, lender, {"path": "synthetic:facts", "documents": 0}, **fields).train


def said(item: dict[str, list[int]]) -> tuple[str, str]:
    """An item's text up to its labels, and that of its labels."""
    first = next(place for place, label in enumerate(item["labels"]) if label != IGNORE)
    assert item["labels"][first:] == item["input_ids"][first:]
    return TOKENIZER.decode(item["input_ids"][:first]), TOKENIZER.decode(item["input_ids"][first:])


def values_of(answer: str) -> list[str]:
    return answer.removeprefix(" ").removesuffix(".\n").replace(" and ", ", ").split(", ")


def test_the_answers_stand_in_the_document_in_order_and_only_they_are_labeled(tmp_path: Path) -> None:
    data = facts_of(tmp_path, count=40)
    several = 0
    for index in range(len(data)):
        before, answer = said(data[index])
        document, question = before.rsplit("\n\n", 1)
        values = values_of(answer)
        several += len(values) > 1
        assert 1 <= len(values) <= 4
        for value in values:
            assert 1 <= len(value) <= 12 and value.isalnum()
            assert value in document and value not in question
        rest = iter(document)
        assert all(character in rest for character in "".join(values))
    assert several > 8


def test_evidence_says_where_each_token_of_an_answer_stands(tmp_path: Path) -> None:
    data = facts_of(tmp_path, count=40)
    for index in range(len(data)):
        item = data[index]
        ids, evidence = item["input_ids"], item["evidence"]
        first = next(place for place, label in enumerate(item["labels"]) if label != IGNORE)
        values = values_of(said(item)[1])
        told: dict[int, list[int]] = {}
        for label, place in evidence:
            told.setdefault(label, []).append(place)
        # the first token asks for all of them; the end of the answer stands nowhere
        begins = sorted(told[first])
        assert len(begins) == len(values)
        assert [
            TOKENIZER.decode(ids[begin : begin + 20]).lstrip().startswith(value)
            for begin, value in zip(begins, values)
        ]
        end = len(ids) - len(TOKENIZER(".\n", add_special_tokens=False)["input_ids"])
        assert sorted(told) == list(range(first, end))
        links = {token for word in (",", " and") for token in TOKENIZER(word, add_special_tokens=False)["input_ids"]}
        for label, places in told.items():
            assert all(place < first for place in places)
            if label > first and ids[places[0]] != ids[label]:  # it introduces the next value
                assert ids[label] in links and places[0] in begins[1:]


@pytest.mark.usefixtures("_no_repeated_excerpts")
def test_facts_are_put_between_the_sentences_of_a_document_that_stays_as_it_was(tmp_path: Path) -> None:
    data = facts_of(tmp_path)
    for index in range(len(data)):
        document = said(data[index])[0].rsplit("\n\n", 1)[0]
        number = int(document.split()[1])
        sentence = f"Document {number} speaks."
        assert document.count(sentence) == text(number, 300).count(sentence)  # none is torn apart
        parts = iter(document)
        assert all(character in parts for character in text(number, 300))  # all is there, in order
        assert len(document) > 300 + 10


def test_in_a_fifth_of_the_samples_an_excerpt_is_repeated(tmp_path: Path) -> None:
    data = facts_of(tmp_path, count=100)
    originals = [text(number, 300) for number in range(100)]
    repeated = 0
    for index in range(len(data)):
        before, _ = said(data[index])
        rests = [iter(before) for _ in originals]
        repeated += not any(all(c in rest for c in original) for original, rest in zip(originals, rests))
        assert len(before) > 300
    assert 8 <= repeated <= 35


def test_facts_are_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    first, second = facts_of(tmp_path), facts_of(tmp_path)
    items = [first[index] for index in range(len(first))]
    assert items == [second[index] for index in range(len(second))]
    second.set_epoch(1)
    answers = {said(item)[1] for item in items}
    assert len(answers | {said(second[index])[1] for index in range(12)}) == 24
    first.set_epoch(1)
    first.set_epoch(0)
    assert items[5] == first[5]


def test_a_sample_has_at_most_max_tokens_and_keeps_its_facts(tmp_path: Path) -> None:
    data = facts_of(tmp_path, max_tokens=250, min_tokens=100)
    for index in range(len(data)):
        assert len(data[index]["input_ids"]) <= 250
        before, answer = said(data[index])
        assert all(value in before for value in values_of(answer))


def test_the_model_finds_labels_in_facts(tmp_path: Path) -> None:
    data = facts_of(tmp_path)
    items = [{name: data[index][name] for name in ("input_ids", "labels", "evidence")} for index in range(4)]
    model = make_focus_model(base={"vocab_size": len(TOKENIZER), "max_position_embeddings": 1024}, choice_weight=1.0)
    output = model(**DocumentCollator()(items))
    assert torch.isfinite(output.loss)
    assert 1 <= output.num_choice < output.num_continuation
    assert output.num_continuation >= 4 and output.num_repetition == 0  # the answer is no part of the memory


def test_facts_are_varied() -> None:
    drawn = [draw_facts(random.Random(seed)) for seed in range(2000)]
    assert set(Counter(map(len, drawn))) == {1, 2, 3, 4, 6, 8}
    assert Counter(len(some[0].values) for some in drawn).keys() == {1, 2, 3, 4}
    assert all(len(fact.values) == 1 for some in drawn for fact in some[1:])
    made_up = [fact for some in drawn for fact in some]
    assert all(len(fact.told) == len(set(fact.values)) == len(fact.values) for fact in made_up)
    told = " ".join(statement for fact in made_up for statement in fact.told)
    asked = " ".join(fact.question for fact in made_up)
    for noun, otherwise in (pair for nouns in NOUNS.values() for pair in nouns.items()):
        assert noun in told and noun in asked and otherwise.split("{name}")[0] in asked
    assert all(name in told for name in NAMES)
    assert all(scene[0].split("{value}")[0] in told and scene[1] in asked for scene in SCENES)
    assert len({value for fact in made_up for value in fact.values}) > 0.9 * len(made_up)


def test_others_look_alike() -> None:
    drawn = [some for seed in range(2000) if len(some := draw_facts(random.Random(seed))) > 3]
    names = [[next((n for n in NAMES if n in fact.told[0]), None) for fact in some[1:]] for some in drawn]
    one_name = [len(set(some)) == 1 and some[0] is not None for some in names]
    scenes = [all(name is None for name in some) for some in names]
    assert 0.1 < sum(one_name) / len(drawn) < 0.2
    assert 0.03 < sum(scenes) / len(drawn) < 0.1


def test_other_words_share_no_long_word_with_what_is_told() -> None:
    short = {"the", "that", "what", "where", "which", "with", "from", "does", "name", "their"}

    def words(text: str) -> set[str]:
        return {word.strip(".,?'\"") for word in text.lower().split() if len(word) > 3} - short

    for told, asked, _ in SCENES:
        assert not words(told) & words(asked), (told, asked)
    for nouns in NOUNS.values():
        for noun, otherwise in nouns.items():
            assert not words(noun) & words(otherwise), (noun, otherwise)


def test_many_numbers_have_a_digit_more_than_once() -> None:
    values = [value for seed in range(2000) for fact in draw_facts(random.Random(seed)) for value in fact.values]
    hexes = [value for value in values if set(value) <= set("0123456789abcdef") and not value.isdigit()]
    numbers = [value[1:] for value in values if value.isdigit() and 6 < len(value) <= 8]
    for made_up in (hexes, numbers):
        few = sum(len(set(value)) <= 3 for value in made_up)
        assert len(made_up) > 300 and 0.3 < few / len(made_up) < 0.48
    assert all(6 <= len(value) <= 12 for value in hexes)


def test_no_wording_is_that_of_a_benchmark() -> None:
    nouns = [noun for nouns in NOUNS.values() for pair in nouns.items() for noun in pair]
    scenes = [words for told, asked, _ in SCENES for words in (told, asked)]
    wordings = [*STATEMENTS, *QUESTIONS, *QUESTIONS_FOR_ALL, *SCENE_QUESTIONS, *nouns, *scenes]
    forbidden = (
        # the passkey prompt
        "pass key", "passkey", "password", "remember", "irrelevant text", "important info", "memorize", "quiz",
        # RULER
        "magic", "special", "mentioned in the provided text", "one of the", "needle",
        # recipes/readings
        "boiler", "courier", "bicycle", "probe stopped", "beekeeper", "lighthouse", "cellar", "soup", "treaty",
    )  # fmt: skip
    for wording in wordings:
        assert not [phrase for phrase in forbidden if phrase in wording.lower()], wording


def test_facts_mix_with_the_documents_that_they_are_hidden_in(tmp_path: Path) -> None:
    path = write_texts(tmp_path, 20, 300)
    facts = {"path": "synthetic:facts", "documents": str(path), "weight": 3.0}
    data = prepared(tmp_path, path, facts, held_out=8)
    assert len(data.train) == 24
    kinds = Counter(IGNORE in data.train[index]["labels"] for index in range(24))
    assert kinds == {True: 18, False: 6}
    held_out = texts(data.held_out)
    assert len(held_out) == 8
    numbers = {document.split()[1] for document in held_out}
    assert not numbers & {TOKENIZER.decode(data.train[n]["input_ids"]).split()[1] for n in range(24)}


@pytest.mark.parametrize("documents", [1, 2, -1, True, "other.txt", "synthetic:facts"])
def test_facts_need_a_source_to_hide_in(documents: Any) -> None:
    pairs = {"path": "pairs.jsonl", "instruction_column": "q", "answer_column": "a"}
    with pytest.raises(ValueError, match="`documents` of the source 'synthetic:facts' is .*neither"):
        DataConfig([{"path": "a.txt"}, pairs, {"path": "synthetic:facts", "documents": documents}])
    with pytest.raises(ValueError, match="`documents` of the source 'synthetic:facts' is None"):
        DataConfig([{"path": "a.txt"}, {"path": "synthetic:facts"}])
    with pytest.raises(ValueError, match="`documents` of the source 'b.txt' is 0"):
        DataConfig([{"path": "a.txt"}, {"path": "b.txt", "documents": 0}])


@pytest.mark.parametrize("max_tokens", [150, 250, 1000])
def test_a_sample_has_no_more_tokens_than_there_may_be(max_tokens: int, tmp_path: Path) -> None:
    data = facts_of(tmp_path, count=60, max_tokens=max_tokens)
    for index in range(len(data)):
        item = data[index]
        assert len(item["input_ids"]) <= max_tokens
        before, answer = said(item)
        assert all(value in before.rsplit("\n\n", 1)[0] for value in values_of(answer))


def test_too_few_tokens_for_any_fact_are_refused(tmp_path: Path) -> None:
    with refusal("`max_tokens` is 60", "'synthetic:facts'"):
        facts_of(tmp_path, max_tokens=60)
