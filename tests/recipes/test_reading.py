"""recipes/reading.py: facts that are hidden in texts, and whether they are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import reading
import torch
from conftest import make_focus_model
from readings import trials
from readings.facts import FACTS, NUMBERS, TAIL, TEXTS, make_document
from readings.held_text import HeldText


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


def test_an_answer_that_ended_is_not_gone_on_with(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_focus_model(
        dtype=torch.float32,
        base={"vocab_size": 259, "max_position_embeddings": 4096},
        chunk_size=128,
        local_size=128,
        prompt_size=16,
    )
    model.get_base_model().generation_config.eos_token_id = list(range(259))
    monkeypatch.setattr(trials, "load", lambda adapter, dtype, **options: (model, tokenizer))
    answered: list[int] = []
    answer = HeldText.answer
    monkeypatch.setattr(HeldText, "answer", lambda *words, **more: answered.append(1) or answer(*words, **more))
    *_, found = reading.drift(reading.parse_args(["drift", "--tokens", "700", "--texts", "1"]))
    assert len(answered) == sum(map(len, found["answers"].values())), "every token ends an answer"


OPTIONS = {
    "choice": ["--texts", "1", "--chunk-size", "128", "--alike"],
    "answers": ["--prompts", "1", "--new-tokens", "2"],
    "forms": ["--texts", "1"],
    "rounds": ["--texts", "1", "--chunk-size", "128"],
    "drift": ["--texts", "1", "--chunk-size", "128"],
}


@pytest.mark.parametrize("measurement", OPTIONS)
def test_a_measurement_writes_what_it_found(
    measurement: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_focus_model(
        base={"vocab_size": 259, "max_position_embeddings": 4096}, chunk_size=128, local_size=128, prompt_size=16
    )
    for module in (reading, trials):
        monkeypatch.setattr(module, "load", lambda adapter, dtype, **options: (model, tokenizer))
    monkeypatch.setattr(reading, "packaged_encoder", lambda: None)  # its package may be installed or not
    output = tmp_path / "found.json"
    reading.main([measurement, "--tokens", "1500", *OPTIONS[measurement], "--output", str(output)])
    found = json.loads(output.read_text())
    assert found["command"].startswith(f"python recipes/reading.py {measurement} --tokens 1500")
    if measurement == "choice":
        recall = found["recall"]["candidates"]
        assert recall["facts"] == 24 and set(recall) == {"all", "facts", *TEXTS}
        assert all(0 <= share <= 1 for share in recall["all"]) and recall["all"] == sorted(recall["all"])
    elif measurement == "answers":
        assert set(found["right"]) == {"adapter", "read_chunks=1", "full attention"}
        assert all(len(answers) == 1 for answers in found["answers"].values())
    elif measurement == "forms":
        assert set(found["right"]) == {"chunks", "candidates", "chunks behind candidates"}
        assert all(len(those) == found["questions"] == 12 for those in found["answers"].values())
    elif measurement == "rounds":
        assert len(found["both facts"]) == 4 and found["questions"] == 12
    else:
        assert len(found["right"]) == 6 and all(len(those) == 4 for those in found["answers"].values())
        assert all(len(one["answers"]) == 4 for those in found["answers"].values() for one in those)
