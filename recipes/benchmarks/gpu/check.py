"""The checks of `tests/device_checks.py` on the device; pytest is not needed."""

from __future__ import annotations

import importlib
import sys
import time
import unittest
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .report import OK, SKIPPED, Report


TESTS = Path(__file__).parents[3] / "tests"


def run(report: Report) -> None:
    options = report.options
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    checks: Any = importlib.import_module("device_checks")
    for name in checks.FEW if options.small else checks.CHECKS:
        report.cell(partial(_run, checks.CHECKS[name], options.device), check=name)
    counts = {status: sum(cell["status"] == status for cell in report.cells) for status in (OK, SKIPPED)}
    report.values["passed"], report.values["skipped"] = counts[OK], counts[SKIPPED]
    report.values["failed"] = len(report.cells) - sum(counts.values())
    report.values["passed_all"] = report.values["failed"] == 0 and counts[OK] > 0
    report.write()


def _run(check: Callable[[torch.device], None], device: torch.device) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        check(device)
    except unittest.SkipTest as reason:
        return {"status": SKIPPED, "reason": str(reason)}
    return {"seconds": round(time.perf_counter() - begin, 2)}
