"""Files of results: JSON, Markdown that opens with the command, and the commit that made them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from focus_peft.saving import write_whole


def write_json(path: Path, values: Any) -> None:
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_markdown(path: Path, command: str, tables: str) -> None:
    """Tables, and above them the command that made them."""
    write_whole(path, f"`{command}`\n\n{tables}")


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


def check_new(output: Path) -> None:
    """Raise a ValueError if the folder of `--output` holds anything."""
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"`--output` {str(output)!r} is not empty; give a new folder.")
