"""`recipes/source_texts.py` writes packages as texts that code across files is asked for in."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import peft
import source_texts
from conftest import make_tiny_tokenizer
from refusal import refusal

from focus_peft.tasks import TASKS, Source
from focus_peft.tasks.code.uses import files_of


def test_a_package_is_written_with_its_version_and_asked_for(tmp_path: Path) -> None:
    source_texts.main(tmp_path / "code", ["peft"])
    text = (tmp_path / "code" / "peft.txt").read_text(encoding="utf-8")
    files = files_of(text)
    assert files["peft/__init__.py"].rstrip() == Path(peft.__file__).read_text(encoding="utf-8").rstrip()
    facts = json.loads((tmp_path / "code" / "packages.json").read_text())
    assert facts == {"peft": {"version": version("peft"), "files": len(files), "characters": len(text)}}
    sample = TASKS["cross_file_line"].sample(Source(make_tiny_tokenizer(), texts=[text]), 20_000, 0, 2)
    prompt = make_tiny_tokenizer().decode(sample.ids)
    assert prompt.startswith("# Path: peft/") and sample.references[0] not in prompt and sample.references[0] in text


def test_nothing_is_overwritten_and_a_package_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    with refusal("'no_such_package'", "install it"):
        source_texts.main(tmp_path / "code", ["peft", "no_such_package"])
    assert not (tmp_path / "code").exists()
    (tmp_path / "mine.txt").touch()
    with refusal("`--output`", "not empty"):
        source_texts.main(tmp_path, ["peft"])
