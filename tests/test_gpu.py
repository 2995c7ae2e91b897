"""What must hold on a card holds on the CPU, where every run of the tests sees it, and on a card where there is one (marked `gpu`)."""

from __future__ import annotations

import pytest
import torch
from device_checks import CHECKS, FEW


CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card")],
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("check", CHECKS)
def test_a_check_holds_on_the_device(check: str, device: str) -> None:
    CHECKS[check](torch.device(device))


def test_the_few_checks_of_the_small_setting_are_checks() -> None:
    assert set(FEW) <= set(CHECKS)
