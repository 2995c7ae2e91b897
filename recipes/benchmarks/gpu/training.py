"""A step of the paper's recipe: Llama-2-7B's shape, documents of 8K tokens, full and low-rank twins, beside the naive
graph.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..training import loss_of_quarters
from .measuring import seconds_of
from .models import Sizes, random_document, random_model
from .report import OK, OUT_OF_MEMORY, Report, free


MODEL = "Llama-2-7B"
# The paper's: steps, and documents of a step
STEPS, BATCH = 10_000, 8
# Label schemes, and how many labels a span of each has in the recipes
SCHEMES = {"exact": 256, "streaming": 32}


def run(report: Report) -> None:
    options = report.options
    report.values["sizes"] = vars(Sizes.of(options))
    report.note(
        f"Hours are an estimate for {STEPS:,} steps of {BATCH} documents, all as long as these, on this one device; "
        "the paper's have 3K to 8K tokens."
    )
    ranks: list[int | None] = [None, 4 if options.small else 64]
    for r in ranks:
        model = random_model(MODEL, options, r=r).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5)
        for decoding in SCHEMES:
            _Training(report, model, optimizer, decoding, "full" if r is None else f"r={r}").measure()
        del model, optimizer
        free(options.device)


class _Training:
    """The cells of one kind of twins and one label scheme."""

    def __init__(self, report: Report, model: Any, optimizer: Any, decoding: str, twins: str) -> None:
        self.report, self.model, self.optimizer, self.options = report, model, optimizer, report.options
        self.device = self.options.device
        self.tokens = 256 if self.options.small else 8192
        self.labels = 4 if self.options.small else SCHEMES[decoding]
        config = model.peft_config["default"]
        config.decoding, config.label_size = decoding, self.labels
        config.train_min_chunk_size = 8 if self.options.small else None
        self.names: dict[str, Any] = {"model": MODEL, "twins": twins, "decoding": decoding}

    def measure(self) -> None:
        """Drawn spans of one document and of as many as fit; and the largest chunks, as long as the naive graph
        fits.
        """
        steps, documents = (2, 2) if self.options.small else (4, BATCH)
        self._cell("drawn spans", self.tokens, 1, partial(self._drawn, 1, steps))
        while documents > 1:
            cell = self._cell("drawn spans", self.tokens, documents, partial(self._drawn, documents, 2))
            documents = documents // 2 if cell["status"] == OUT_OF_MEMORY else 1
        for tokens in (self.tokens, self.tokens // 2, self.tokens // 4):
            self._cell("largest chunks, focus_peft", tokens, 1, partial(self._largest, tokens, naive=False))
            cell = self._cell("largest chunks, naive graph", tokens, 1, partial(self._largest, tokens, naive=True))
            if cell["status"] == OK:
                break

    def _cell(self, way: str, tokens: int, documents: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        cell = self.report.cell(measure, **self.names, tokens=tokens, way=way, documents=documents)
        self.optimizer.zero_grad(set_to_none=True)
        free(self.device)
        return cell

    def _drawn(self, documents: int, steps: int) -> dict[str, Any]:
        """Spans and chunk sizes as training draws them, with a step of AdamW."""
        self._step(0, documents)
        found = [self._step(number, documents) for number in range(1, steps + 1)]
        seconds, update, labels = (statistics.mean(values) for values in zip(*found))
        return {
            "seconds": round(seconds, 5),
            "all_seconds": [round(values[0], 5) for values in found],
            "optimizer_seconds": round(update, 5),
            "tokens_per_second": round(documents * self.tokens / seconds, 1),
            "labels": labels,
            "labels_per_second": round(labels / seconds, 1),
            "hours_of_the_paper": round(STEPS * (BATCH * seconds / documents + update) / 3600, 3),
        }

    def _step(self, number: int, documents: int) -> tuple[float, float, int]:
        """Seconds of both passes and of the update, and how many labels there were."""
        ids = random_document(self.model, self.tokens, self.options, rows=documents, seed=number)
        counted: list[int] = []

        def passes() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=not self.options.small):
                output = self.model(ids, labels=ids, sample_seeds=torch.arange(documents) + documents * number)
            output.loss.backward()
            counted.append(int(output.num_continuation) + int(output.num_repetition))

        seconds = seconds_of(passes, self.device)
        update = seconds_of(self.optimizer.step, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        return seconds, update, counted[0]

    def _largest(self, tokens: int, naive: bool) -> dict[str, Any]:
        """Chunks and windows of a quarter of the document, the largest there are."""
        ids = random_document(self.model, tokens, self.options)[0].tolist()
        losses: list[float] = []

        def passes() -> None:
            self.model.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=not self.options.small):
                loss = loss_of_quarters(self.model.base_model, ids, self.labels, naive)
            loss.backward()
            losses.append(float(loss.detach()))

        passes()
        seconds = seconds_of(passes, self.device)
        gradients = [p.grad.float().norm() for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.stack(gradients).norm())
        return {
            "seconds": round(seconds, 5),
            "tokens_per_second": round(tokens / seconds, 1),
            "labels": 2 * self.labels,
            "labels_per_second": round(2 * self.labels / seconds, 1),
            "loss": round(losses[-1], 5),
            "gradient_norm": float(f"{norm:.5g}"),
        }
