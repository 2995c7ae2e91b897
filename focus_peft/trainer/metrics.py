"""What a training run measures besides its loss: both losses apart, the baseline, speed and memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch


# Fields of FocusOutput that are logged, and the fields that count their labels
MEANS = {
    "loss_continuation": "num_continuation",
    "loss_repetition": "num_repetition",
    "loss_local_continuation": "num_continuation",
    "loss_local_repetition": "num_repetition",
    "loss_choice": "num_choice",
}
# A vector of what was measured holds the sum and the count of each mean, then these
DISTILLATION = 2 * len(MEANS)  # the distillation term, and how many micro-batches had it
TOKENS = DISTILLATION + 2
LOSS, STEPS = TOKENS + 1, TOKENS + 2  # the loss, and how many micro-batches had labels to make it of
SIZE = TOKENS + 3


def zeros(device: torch.device) -> torch.Tensor:
    """A vector to add up in: (`SIZE`,)."""
    # not every device has float64
    return torch.zeros(SIZE, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def measured(output: Mapping[str, Any], inputs: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    """What one micro-batch adds, as a vector (`SIZE`,)."""
    values: list[Any] = []
    for loss, count in MEANS.items():
        value, labels = output.get(loss), output.get(count)
        values += [0.0, 0] if value is None or labels is None else [value * labels, labels]
    divergence = output.get("loss_distillation")
    mask = inputs.get("attention_mask")
    tokens = inputs["input_ids"].numel() if mask is None else mask.sum()
    counts = (output["num_continuation"] + output["num_repetition"]) > 0
    values += [0.0, 0] if divergence is None else [divergence * counts, counts]
    values += [tokens, output["loss"] * counts, counts]
    dtype = zeros(device).dtype
    return torch.stack([torch.as_tensor(value, device=device).detach().to(dtype) for value in values])


def summary(sums: Sequence[float]) -> dict[str, float]:
    """The means of added-up vectors. What was never measured is left out.

    Every mean is over labels: a micro-batch with more labels counts for more. `loss_local` is the mean over all
    labels.
    """
    means = {}
    for number, name in enumerate(MEANS):
        total, count = sums[2 * number : 2 * number + 2]
        if count:
            means[name] = total / count
    alone = sums[4:8]
    if alone[1] + alone[3]:
        means["loss_local"] = (alone[0] + alone[2]) / (alone[1] + alone[3])
    if sums[DISTILLATION + 1]:
        means["loss_distillation"] = sums[DISTILLATION] / sums[DISTILLATION + 1]
    return means


def label_count(sums: Sequence[float]) -> float:
    return sums[1] + sums[3]


class Clock:
    """Seconds of training, without those of evaluation and saving."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start = time.perf_counter()
        self.paused = 0.0
        self.depth = 0

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Within the context, which may be nested, no time passes."""
        begin = time.perf_counter()
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self.paused += time.perf_counter() - begin

    def seconds(self) -> float:
        return max(time.perf_counter() - self.start - self.paused, 1e-9)


def peak_memory(device: torch.device) -> float:
    """The most bytes that this process has held: on its GPU, or resident in RAM where it has none."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
