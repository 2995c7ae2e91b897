"""`recipes/debian_texts.py` reads all packages before it writes anything."""

from __future__ import annotations

from pathlib import Path

import debian_texts
import pytest
from debian_texts import LEAST, Package
from refusal import refusal


def test_a_package_that_is_missing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.txt").write_text("word " * LEAST)
    packages = (Package("there", tmp_path, "*.txt"), Package("missing", tmp_path / "nowhere", "*.txt"))
    monkeypatch.setattr(debian_texts, "TRAIN", packages)
    for _ in range(2):
        with refusal("'missing'", "`apt install missing`", error=FileNotFoundError):
            debian_texts.main(tmp_path / "texts")
    assert not (tmp_path / "texts").exists()
