"""The clock, and how fast the device copies and multiplies at all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .models import SHAPES, Sizes, random_model
from .report import Options, Report, free


@dataclass(frozen=True)
class Rates:
    """What the device reaches.

    Attributes:
        bytes_per_second (`float`): Of a large copy, bytes read and bytes written together.
        flops_per_second (`float`): Of a large product of matrices, an addition and a multiplication being two.
    """

    bytes_per_second: float
    flops_per_second: float

    def to_dict(self) -> dict[str, float]:
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


def measure_rates(options: Options) -> Rates:
    """Measure both, with the medians of several."""
    size, width = (2**20, 256) if options.small else (2**31, 8192)
    source = torch.zeros(size, dtype=options.dtype, device=options.device)
    target = torch.empty_like(source)
    left, right = (torch.randn(width, width, dtype=options.dtype, device=options.device) for _ in range(2))
    copied = median_seconds(lambda: target.copy_(source), options.device, 10)
    multiplied = median_seconds(lambda: left @ right, options.device, 10)
    return Rates(2 * source.nbytes / copied, 2 * width**3 / multiplied)


def measure_models(report: Report, measure: Callable[[Rates, str, Any], None]) -> None:
    """Call a function for each of the published shapes, with the device's rates, its name and its model. One model is
    held at a time.
    """
    options = report.options
    rates = measure_rates(options)
    report.values["rates"], report.values["sizes"] = rates.to_dict(), vars(Sizes.of(options))
    for name in SHAPES:
        measure(rates, name, random_model(name, options, r=options.r))
        free(options.device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device is done with a call."""
    wait(device)
    begin = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - begin


def median_seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median of several calls, after one that does not count."""
    function()
    return statistics.median(seconds_of(function, device) for _ in range(repeats))


def repeated(function: Callable[[], Any], device: torch.device, seconds_left: float) -> dict[str, Any]:
    """The median of up to three calls, as far as there is time: the first may be slower, as memory is reserved in
    it.
    """
    values = [seconds_of(function, device)]
    while len(values) < 3 and values[0] < seconds_left / 30:
        values.append(seconds_of(function, device))
    rest = values[1:] or values
    return {"seconds": round(statistics.median(rest), 5), "all_seconds": [round(value, 5) for value in values]}
