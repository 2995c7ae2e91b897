"""The command `focus-peft` as a process: how fast it says what it can do, and how quietly it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, make_focus_model, save_base


COMMAND = [sys.executable, "-m", "focus_peft"]
GENERATE = ["generate", "--model", "model", "--document", "doc.txt", "--question", "?", "--device", "cpu"]


def started(words: Sequence[str], folder: Path, python: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
    command = [COMMAND[0], *python, *COMMAND[1:], *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out or "", err or ""


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["generate", "--help"], ["publish", "--help"], ["x"]])
def test_options_are_told_without_loading_torch(words: list[str], tmp_path: Path) -> None:
    code, out, err = ended(started(words, tmp_path, ["-X", "importtime"]))
    assert code == (2 if words == ["x"] else 0)
    assert "focus-peft" in out + err
    loaded = {line.rpartition("|")[2].strip() for line in err.splitlines() if line.startswith("import time:")}
    assert "argparse" in loaded and not loaded & {"torch", "peft", "transformers", "huggingface_hub", "numpy"}


def test_the_script_of_the_package_does_the_same(tmp_path: Path) -> None:
    script = tmp_path / "focus-peft"
    script.write_text(
        "import sys\nfrom focus_peft.cli import main\nassert 'torch' not in sys.modules\nsys.exit(main())"
    )
    words = [sys.executable, str(script), "--version"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("focus-peft ")


def test_a_reader_that_went_away_ends_it_quietly(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert ended(started(["--help"], tmp_path, stdout=writing)) == (141, "", "")
    os.close(writing)


@pytest.mark.slow
def test_a_reader_that_goes_away_before_the_answer_ends_it_quietly(tmp_path: Path) -> None:
    save_base(tmp_path / "model", dtype=torch.float32)
    (tmp_path / "doc.txt").write_text("The quick brown fox. " * 9)
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = ended(started([*GENERATE, "--max-new-tokens", "9"], tmp_path, stdout=writing))
    os.close(writing)
    assert code == 141 and "read 189 tokens" in err
    assert "Traceback" not in err and "Broken pipe" not in err and "answered" not in err


def test_closed_streams_are_told(tmp_path: Path) -> None:
    words = ["generate", "--model", "model", "--document", "-", "--question", "?"]
    for closed, code in (("0<&-", 3), ("1>&-", 2)):
        line = " ".join(["exec", *COMMAND, *words, closed])
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code
        assert done.stderr.startswith("focus-peft: error: ") and done.stderr.count("\n") == 1


def test_ctrl_c_during_imports_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "doc.txt").write_text("Something.")
    process = started(GENERATE, tmp_path, ["-X", "importtime"])
    assert process.stderr is not None
    for line in process.stderr:
        if line.rpartition("|")[2].strip().startswith("torch."):
            process.send_signal(signal.SIGINT)
            break
    code, out, err = ended(process)
    assert (code, out) == (130, "")
    told = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert told[-1] == "focus-peft: interrupted." and "Traceback" not in err


def test_an_adapter_is_published_by_a_process_of_its_own(tmp_path: Path) -> None:
    """PEFT does not know focus adapters before somebody tells it."""
    make_focus_model("llama", r=2).save_pretrained(tmp_path / "adapter")
    (tmp_path / "notes.md").write_text("Never trained.")
    words = ["publish", "--adapter", "adapter", "--output", "out", "--license", "mit", "--base-model", "user/base"]
    code, out, err = ended(started([*words, "--notes", "notes.md"], tmp_path))
    assert (code, out) == (0, "out\n"), err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
