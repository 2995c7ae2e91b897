"""Made-up facts: hidden in real documents, asked for at the end, never in the words of a benchmark."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_focus_model
from test_data import TOKENIZER, prepared, text, texts, write_texts

from focus_peft.config import IGNORE
from focus_peft.data import DataConfig, DocumentCollator, facts
from focus_peft.data.facts import NAMES, NOUNS, QUESTIONS, STATEMENTS, draw_facts


@pytest.fixture
def _no_repeated_excerpts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "REPEATED", 0.0)


def facts_of(tmp_path: Path, count: int = 12, **fields: Any) -> Any:
    """Training data of nothing but facts, hidden in so many documents."""
    lender = {"path": str(write_texts(tmp_path, count, 300)), "weight": 0}
    return prepared(tmp_path, lender, {"path": "synthetic:facts", "documents": 0}, **fields).train


def said(item: dict[str, list[int]]) -> tuple[str, str]:
    """An item's text up to its labels, and that of its labels."""
    first = next(place for place, label in enumerate(item["labels"]) if label != IGNORE)
    assert item["labels"][first:] == item["input_ids"][first:]
    return TOKENIZER.decode(item["input_ids"][:first]), TOKENIZER.decode(item["input_ids"][first:])


def test_the_answer_stands_in_the_document_and_only_it_is_labeled(tmp_path: Path) -> None:
    data = facts_of(tmp_path)
    for index in range(len(data)):
        before, answer = said(data[index])
        value = answer.removeprefix(" ").removesuffix(".\n")
        assert 1 <= len(value) <= 12 and value.isalnum()
        document, question = before.rsplit("\n\n", 1)
        assert value in document and value not in question
        name = next(name for name in NAMES if name in question)
        assert name in document


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
        assert answer.removeprefix(" ").removesuffix(".\n") in before


def test_the_model_finds_labels_in_facts(tmp_path: Path) -> None:
    data = facts_of(tmp_path)
    items = [{name: data[index][name] for name in ("input_ids", "labels")} for index in range(4)]
    model = make_focus_model(base={"vocab_size": len(TOKENIZER), "max_position_embeddings": 1024})
    output = model(**DocumentCollator()(items))
    assert torch.isfinite(output.loss)
    assert output.num_continuation >= 4 and output.num_repetition == 0  # the answer is no part of the memory


def test_facts_are_varied() -> None:
    drawn = [draw_facts(random.Random(seed)) for seed in range(2000)]
    assert set(Counter(map(len, drawn))) == {1, 2, 3, 4, 6, 8}
    made_up = [fact for some in drawn for fact in some]
    assert {fact["name"] for fact in made_up} == set(NAMES)
    assert {fact["noun"] for fact in made_up} == {noun for nouns in NOUNS.values() for noun in nouns}
    assert len({fact["value"] for fact in made_up}) > 0.9 * len(made_up)
    assert all(len({fact["name"] for fact in some}) == len(some) for some in drawn)
    alike = [len({fact["noun"] for fact in some}) == 1 for some in drawn if len(some) > 3]
    assert 0.2 < sum(alike) / len(alike) < 0.4


def test_many_numbers_have_a_digit_more_than_once() -> None:
    made_up = [fact for seed in range(2000) for fact in draw_facts(random.Random(seed))]
    hexes = [fact["value"] for fact in made_up if fact["noun"] in NOUNS["hex"]]
    numbers = [fact["value"][1:] for fact in made_up if fact["noun"] in NOUNS["number"] and len(fact["value"]) > 6]
    for values in (hexes, numbers):
        few = sum(len(set(value)) <= 3 for value in values)
        assert len(values) > 300 and 0.33 < few / len(values) < 0.48
    assert all(value.isdigit() and 3 <= len(value) + 1 <= 8 for value in numbers)
    assert all(set(value) <= set("0123456789abcdef") and 6 <= len(value) <= 12 for value in hexes)


def test_no_wording_is_that_of_a_benchmark() -> None:
    fact = {"name": "Nadia", "noun": "locker code", "value": "1234"}
    nouns = [noun for nouns in NOUNS.values() for noun in nouns]
    wordings = [template.format(**fact).lower() for template in STATEMENTS + QUESTIONS] + nouns
    forbidden = (
        # the passkey prompt
        "pass key", "passkey", "password", "remember", "irrelevant text", "important info", "memorize", "quiz",
        # RULER
        "magic", "special", "mentioned in the provided text", "one of the", "needle",
    )  # fmt: skip
    for wording in wordings:
        assert not [phrase for phrase in forbidden if phrase in wording]


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
