"""Files of results: JSON, Markdown that opens with the command, and the commit that made them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace a file when the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_markdown(path: Path, command: str, tables: str) -> None:
    """Tables, and above them the command that made them."""
    write_text(path, f"`{command}`\n\n{tables}")


def git_commit() -> str | None:
    """The commit of this code, with a mark if it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
