"""`add_bos` that is left open is decided when an adapter is made, by the tokenizer beside the model, and saved."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model, random_ids, small_config
from lib.byte_tokenizer import byte_tokenizer
from peft import PeftModel, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from focus_peft import FocusConfig


def saved_base(folder: Path, adds: bool | None, family: str = "llama", **fields: Any) -> Any:
    """A model that was loaded from a folder, beside a tokenizer that adds its BOS to a text, or doesn't, or none."""
    tokenizer = byte_tokenizer()
    if adds:
        start = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = start
    if adds is not None:
        tokenizer.save_pretrained(folder)
    fields = {"bos_token_id": tokenizer.bos_token_id, **fields}
    make_tiny_model(family, torch.float32, vocab_size=len(tokenizer), **fields).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def decided(model: Any, **fields: Any) -> bool | None:
    adapted: Any = get_peft_model(model, small_config(**fields))
    config = adapted.peft_config["default"]
    assert adapted.base_model.settings().bos == (model.config.bos_token_id if config.add_bos else None)
    return config.add_bos


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("adds", [True, False])
def test_the_tokenizer_beside_the_model_decides(tmp_path: Path, family: str, adds: bool) -> None:
    assert decided(saved_base(tmp_path, adds, family)) is adds


@pytest.mark.parametrize("add_bos", [True, False])
def test_what_is_said_is_not_decided(tmp_path: Path, add_bos: bool) -> None:
    assert decided(saved_base(tmp_path, not add_bos), add_bos=add_bos) is add_bos


def test_a_tokenizer_that_adds_another_token_than_the_models_bos_decides_against_it(tmp_path: Path) -> None:
    assert decided(saved_base(tmp_path, True, bos_token_id=2)) is False


@pytest.mark.parametrize("family, adds", [("llama", True), ("gpt2", True), ("gemma", True), ("qwen2", False)])
def test_without_a_tokenizer_bos_is_added_but_for_families_that_have_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, adds: bool
) -> None:
    model = saved_base(tmp_path, None, family)
    with caplog.at_level(logging.WARNING, "focus_peft"):
        assert decided(model) is adds
    assert [str(tmp_path) in record.getMessage() for record in caplog.records] == [True] * adds


def test_a_model_that_was_built_in_code_adds_its_bos(caplog: pytest.LogCaptureFixture) -> None:
    assert decided(make_tiny_model("qwen2")) is True and not caplog.records


def test_a_damaged_tokenizer_is_none(tmp_path: Path) -> None:
    model = saved_base(tmp_path, False)
    (tmp_path / "tokenizer.json").write_text("{")
    assert decided(model) is True


def test_a_model_without_bos_adds_none(tmp_path: Path) -> None:
    assert decided(saved_base(tmp_path, True, bos_token_id=None)) is False


def test_the_tokenizer_in_the_hubs_cache_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = "0123456789" * 4
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    model = saved_base(repository / "snapshots" / revision, False)
    model.config._name_or_path = model.name_or_path = "someone/tiny"
    assert decided(model) is False


@pytest.mark.parametrize("adds", [True, False])
def test_an_adapter_keeps_what_was_decided_where_the_tokenizer_says_otherwise(tmp_path: Path, adds: bool) -> None:
    given = small_config()
    model = get_peft_model(saved_base(tmp_path / "base", adds), given)
    assert given.add_bos is None  # for it may make an adapter of another model
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["add_bos"] is adds
    shutil.rmtree(tmp_path / "base")
    elsewhere = saved_base(tmp_path / "elsewhere", not adds)
    again: Any = PeftModel.from_pretrained(elsewhere, tmp_path / "adapter")
    assert again.peft_config["default"].add_bos is adds
    model.load_adapter(tmp_path / "adapter", "second")
    model.add_adapter("third", FocusConfig(chunk_size=8, local_size=8, prompt_size=4, add_bos=not adds))
    assert [model.peft_config[name].add_bos for name in ("default", "second", "third")] == [adds, adds, not adds]
    ids = random_ids(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, model.eval()(ids).logits)


def test_a_configuration_that_was_saved_open_stays_open(tmp_path: Path) -> None:
    small_config().save_pretrained(tmp_path)
    assert FocusConfig.from_pretrained(tmp_path).add_bos is None
    assert small_config().with_overrides(local_size=16).add_bos is None
