"""What the documents say of families and versions is what the tests and the package say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import test_families
from families import FAMILIES
from models_table import BEGIN, CHECKS, END, SIGNS, TableWriter, read_table


ROOT = Path(__file__).parent.parent
MODELS = ROOT / "docs" / "models.md"


def test_the_table_of_models_has_the_families_and_checks_of_the_matrix() -> None:
    families, checks = read_table(MODELS.read_text(encoding="utf-8"))
    assert families == list(FAMILIES), "run `make models-table`"
    assert checks == list(CHECKS.values()), "run `make models-table`"


def test_every_check_of_the_matrix_has_a_column() -> None:
    tests = [name for name in vars(test_families) if name.startswith("test_")]
    over_families = [name for name in tests if "family" in test_families.__dict__[name].__code__.co_varnames]
    assert over_families == list(CHECKS)


def test_every_cell_of_the_table_has_an_outcome_and_every_note_is_there() -> None:
    table = MODELS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    notes = set(re.findall(r"^(\d+)\. ", table, re.MULTILINE))
    for row in rows:
        for cell in row.split("|")[3:-1]:
            assert cell.split()[0] in SIGNS, row
            assert set(re.findall(r"<sup>(\d+)</sup>", cell)) <= notes, row


def report(nodeid: str, outcome: str = "passed", **fields: object) -> pytest.TestReport:
    reason = ("test_families.py", 1, "Skipped: no such model") if outcome == "skipped" else None
    made = pytest.TestReport(nodeid, (nodeid, None, ""), {}, outcome, reason, fields.pop("when", "call"))  # type: ignore[arg-type]
    vars(made).update(fields)
    return made


def test_a_table_is_written_between_its_marks_from_what_was_run(tmp_path: Path) -> None:
    file = tmp_path / "models.md"
    file.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n", encoding="utf-8")
    writer = TableWriter(file)
    for family in FAMILIES:
        for check in CHECKS:
            nodeid = f"tests/test_families.py::{check}[{family}]"
            if family == "gpt2":
                writer.pytest_runtest_logreport(report(nodeid, "skipped", when="setup"))
            elif family == "opt":
                writer.pytest_runtest_logreport(report(nodeid, "skipped", wasxfail="not yet"))
            else:
                writer.pytest_runtest_logreport(report(nodeid, "failed" if family == "llama" else "passed"))
    writer.pytest_sessionfinish()
    text = file.read_text(encoding="utf-8")
    assert text.startswith("Before.\n") and text.endswith("After.\n") and "old" not in text
    assert read_table(text) == (list(FAMILIES), list(CHECKS.values()))
    signs = {line.split(" | ")[0][2:]: set(line.split(" | ")[2:]) for line in text.splitlines() if line[:2] == "| "}
    assert {sign.strip(" |") for sign in signs["llama"]} == {"✗"}
    assert {sign.strip(" |") for sign in signs["qwen2"]} == {"✓"}
    assert all(sign.startswith("–") for sign in signs["gpt2"] | signs["opt"])
    assert "1. No such model.\n2. Not yet." in text


def test_a_table_of_half_a_run_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "models.md"
    file.write_text(f"{BEGIN}\nold\n{END}\n", encoding="utf-8")
    with pytest.raises(pytest.UsageError, match="not run"):
        TableWriter(file).pytest_sessionfinish()
    assert "old" in file.read_text(encoding="utf-8")


def test_the_lowest_versions_that_are_tested_are_those_that_the_package_admits() -> None:
    admitted = re.findall(r'"(peft|transformers)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = re.findall(r"^(peft|transformers)==([\d.]+)$", (ROOT / "tests" / "lowest.txt").read_text(), re.MULTILINE)
    assert len(admitted) == 2
    assert {name: version.removesuffix(".0") for name, version in pinned} == dict(admitted)
