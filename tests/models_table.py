"""The table of families in docs/models.md: what the matrix found, written by `make models-table` and never by hand."""

from __future__ import annotations

import re
from pathlib import Path

import peft
import pytest
import torch
import transformers
from families import FAMILIES


BEGIN = "<!-- The table: written by `make models-table` -->"
END = "<!-- The table ends -->"

# The checks of test_families.py, by the names of their tests, and how the table calls them
CHECKS = {
    "test_defaults_alone_work": "defaults",
    "test_twins_equal_the_base_at_the_start": "start",
    "test_no_memory_equals_the_base_model_bit_for_bit": "no memory",
    "test_batched_chunks_equal_one_by_one": "chunk batches",
    "test_each_row_of_a_ragged_batch_equals_that_row_alone": "ragged rows",
    "test_exact_mode_equals_the_slow_reference": "exact",
    "test_streaming_equals_its_slow_reference": "streaming",
    "test_only_twins_have_a_gradient_and_it_is_the_naive_one": "gradient",
    "test_a_loaded_adapter_computes_the_same_logits": "save, load",
    "test_a_disabled_adapter_leaves_the_base_model": "disable",
    "test_beams_with_a_shared_memory_equal_beams_without": "beams",
}
# What a check can come to, the worst first; of several variants (attention implementations), the worst one counts
FAILED, EXPECTED, PASSED, SKIPPED = range(4)
SIGNS = ("✗", "–", "✓", "–")


class TableWriter:
    """A pytest plugin that gathers the outcomes of the matrix and writes them into a file, between two marks.

    Args:
        path (`Path`): The file; what stands around the marks stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[tuple[str, str], list[tuple[int, str]]] = {}  # (family, check) -> [(outcome, reason)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the outcome of a check."""
        name, _, parameters = report.nodeid.rpartition("::")[2].partition("[")
        family = parameters.rstrip("]").partition("-")[0]
        if name not in CHECKS or family not in FAMILIES or (report.when != "call" and report.passed):
            return
        if report.skipped and hasattr(report, "wasxfail"):
            outcome = EXPECTED, report.wasxfail
        elif report.skipped:
            outcome = SKIPPED, str(report.longrepr[2]).removeprefix("Skipped: ")
        else:
            outcome = PASSED if report.passed else FAILED, ""
        self.outcomes.setdefault((family, name), []).append(outcome)

    def pytest_sessionfinish(self) -> None:
        """Write the table, if every check was run."""
        missing = [(family, check) for family in FAMILIES for check in CHECKS if (family, check) not in self.outcomes]
        if missing:
            raise pytest.UsageError(
                f"The table was not written: {len(missing)} checks were not run, the first is {missing[0]}."
            )
        before, _, rest = self.path.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        self.path.write_text(f"{before}{BEGIN}\n\n{self.table()}\n\n{END}{after}", encoding="utf-8")

    def table(self) -> str:
        """Families as rows, checks as columns, and reasons below."""
        notes: list[str] = []
        lines = ["| family | attention: projections; positions | " + " | ".join(CHECKS.values()) + " |"]
        lines.append("|---|---|" + ":-:|" * len(CHECKS))
        for family, kind in FAMILIES.items():
            cells = [self._cell(family, check, notes) for check in CHECKS]
            lines.append(f"| {family} | {kind.about} | " + " | ".join(cells) + " |")
        versions = f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}"
        lines += [
            "",
            f"{SIGNS[PASSED]} passes, {SIGNS[FAILED]} fails, {SIGNS[SKIPPED]} see the note. Run with {versions}.",
        ]
        if notes:
            lines.append("")
            lines += [f"{number}. {note[0].upper()}{note[1:]}." for number, note in enumerate(notes, 1)]
        return "\n".join(lines)

    def _cell(self, family: str, check: str, notes: list[str]) -> str:
        outcomes = self.outcomes[family, check]
        cell = SIGNS[min(outcome for outcome, _ in outcomes)]
        for reason in dict.fromkeys(reason for _, reason in outcomes if reason):
            if reason not in notes:
                notes.append(reason)
            cell += f" <sup>{notes.index(reason) + 1}</sup>"
        return cell


def read_table(text: str) -> tuple[list[str], list[str]]:
    """(families, checks) of the table in a file's text."""
    rows = [line for line in text.partition(BEGIN)[2].partition(END)[0].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return [row[0] for row in cells[1:]], cells[0][2:]
