"""recipes/reading.py: facts that are hidden in texts, and whether they are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import reading
from conftest import make_focus_model
from readings.facts import FACTS, NUMBERS, TAIL, TEXTS, make_document


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_facts_stand_where_a_document_says(text: str, alike: bool, tokenizer: Any) -> None:
    document = make_document(tokenizer, text, 2000, FACTS[:4], seed=3, alike=alike)
    assert len(document.ids) == 2000
    for fact in FACTS[:4]:
        before, after = fact.alike.split("{answer}")
        told = tokenizer.decode(document.ids)
        assert (before in told and after in told.split(before)[1]) == alike
    for fact, (begin, end), question, answer in zip(FACTS, document.places, document.questions, document.answers):
        assert end <= 2000 - TAIL
        assert fact.told.format(answer=answer) in tokenizer.decode(document.ids[begin:end])
        assert tokenizer.decode(question) == f"\n\nQuestion: {fact.question}\nAnswer:"
    assert document == make_document(tokenizer, text, 2000, FACTS[:4], seed=3, alike=alike)
    assert document.answers != make_document(tokenizer, text, 2000, FACTS[:4], seed=4, alike=alike).answers


def test_numbers_are_asked_for_in_the_words_that_they_are_told_in() -> None:
    for fact in NUMBERS:
        assert fact.question.removeprefix("What is t").removesuffix("?") in fact.told


@pytest.mark.parametrize("measurement", ["choice", "answers"])
def test_a_measurement_writes_what_it_found(
    measurement: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_focus_model(
        base={"vocab_size": 259, "max_position_embeddings": 4096}, chunk_size=128, local_size=128, prompt_size=16
    )
    monkeypatch.setattr(reading, "load", lambda adapter, dtype: (model, tokenizer))
    monkeypatch.setattr(reading, "packaged_encoder", lambda: None)  # its package may be installed or not
    few = (
        ["--texts", "1", "--chunk-size", "128"] if measurement == "choice" else ["--prompts", "1", "--new-tokens", "2"]
    )
    output = tmp_path / "found.json"
    reading.main([measurement, "--tokens", "1000", *few, "--output", str(output)])
    found = json.loads(output.read_text())
    assert found["command"].startswith(f"python recipes/reading.py {measurement} --tokens 1000")
    if measurement == "choice":
        recall = found["recall"]["last eight tokens"]
        assert recall["facts"] == 24 and set(recall) == {"all", "facts", *TEXTS}
        assert all(0 <= share <= 1 for share in recall["all"]) and recall["all"] == sorted(recall["all"])
    else:
        assert set(found["right"]) == {"adapter", "read_chunks=1", "full attention"}
        assert all(len(answers) == 1 for answers in found["answers"].values())
