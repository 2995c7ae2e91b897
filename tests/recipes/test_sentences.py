"""What a user of the recipes can mend ends them with a sentence, not with a traceback."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import ROOT, TINY


pytest.importorskip("datasets")
pytest.importorskip("matplotlib")

from lib.command_line import sentences


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Those of this process, which `ablations.py` sets for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (f"train.py --config {TINY} lr=1", "`lr` is in no section"),
        (f"train.py --config {TINY} data=null", "`data.sources` is missing"),
        (f"train.py --config {TINY} --dry-run focus.r=0", "`r`"),
        ("train.py --config FOLDER/none.yaml", "none.yaml' cannot be read: No such file"),
        ("evaluate.py --config recipes/evaluations/tiny_debug.yaml output_dir=FOLDER/file", "file"),
        ("ablations.py --config recipes/ablations/tiny_debug.yaml output_dir=FOLDER/file", "file"),
        ("ablations.py --config recipes/ablations/tiny_debug.yaml --launcher nosuch", "`--launcher` is 'nosuch'"),
        ("plot.py ablations --study x --results FOLDER/none.json --output FOLDER/p.svg", "none.json'"),
        ("plot.py scaling --results docs/results/scaling.json --output FOLDER/p.txt", "'txt'"),
    ],
)
def test_what_one_can_mend_is_a_sentence(
    command: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("where a folder belongs")
    monkeypatch.chdir(ROOT)
    script, *words = command.replace("FOLDER", str(tmp_path)).split()
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "recipes" / script), run_name="__main__")
    assert str(ended.value).startswith("error: ") and named in str(ended.value)


def test_what_is_a_fault_of_ours_has_its_traceback() -> None:
    with pytest.raises(TypeError), sentences():
        raise TypeError("of a program")
