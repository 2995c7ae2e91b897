"""Seconds until the first token: chunks in parallel, one at a time, exact decoding, the base model over the same
chunks, full attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..setting import Pieces
from .floors import Counts, Floor
from .measuring import Rates, measure_models, repeated
from .models import Sizes, random_document
from .report import OK, Report, free


# Our ways to read, and what `generate` is given for each
WAYS: dict[str, dict[str, Any]] = {
    "chunks in parallel": {"decoding": "streaming"},
    "one chunk at a time": {"decoding": "streaming", "chunk_batch_size": 1},
    "chunks in parallel, exact": {"decoding": "exact"},
}
# The share of a card's free memory that states may take; the rest is for what is computed
STATES_SHARE = 0.85
# Bytes of a state in 8 bits, with its scales, beside one of 16 bits
INT8_SIZE = 0.54


def run(report: Report) -> None:
    measure_models(report, lambda rates, name, model: _Reading(report, rates, name, model).measure())


class _Reading:
    """The cells of one model."""

    def __init__(self, report: Report, rates: Rates, name: str, model: Any) -> None:
        self.report, self.rates, self.name, self.model = report, rates, name, model
        self.options, self.device = report.options, report.options.device
        self.sizes = Sizes.of(self.options)
        self.counts = Counts(model, self.sizes)
        self.last: dict[str, tuple[int, float]] = {}  # tokens and seconds of the length before, by way

    def measure(self) -> None:
        self.report.cell(self._warm_up, model=self.name, way="warm-up")
        for tokens in self.sizes.lengths:
            ids = random_document(self.model, tokens, self.options)
            storage = storage_for(self.counts, tokens, self.device)
            floor = self.counts.reading(tokens)
            self._cell("base model, same chunks", tokens, self._same_chunks(ids), floor)
            if storage is None:
                self.report.skip(
                    "its keys and values do not fit the card", model=self.name, tokens=tokens, way="all of ours"
                )
            for way, options in WAYS.items() if storage else ():
                read = self._first_token(ids, storage=storage, **options)
                self._cell(way, tokens, read, floor, storage=storage)
            self._full_attention(tokens, ids)
        self._compare()

    def _warm_up(self) -> dict[str, Any]:
        ids = random_document(self.model, self.sizes.local + 3 * self.sizes.chunk, self.options)
        for options in WAYS.values():
            self._first_token(ids, **options)()
        self._plain(ids[:, :64])()
        return {}

    def _first_token(self, ids: torch.Tensor, **options: Any) -> Callable[[], Any]:
        return lambda: self.model.generate(ids, max_new_tokens=1, do_sample=False, progress=False, **options)

    def _same_chunks(self, ids: torch.Tensor) -> Callable[[], Any]:
        def read() -> None:
            with torch.no_grad(), self.model.disable_adapter():
                Pieces(ids, self.model.base_model.settings()).read(self.model.base_model.model)

        return read

    def _plain(self, ids: torch.Tensor) -> Callable[[], Any]:
        def read() -> None:
            with torch.no_grad(), self.model.disable_adapter():
                self.model.generate(input_ids=ids, max_new_tokens=1, do_sample=False)

        return read

    def _full_attention(self, tokens: int, ids: torch.Tensor) -> None:
        names: dict[str, Any] = {"model": self.name, "tokens": tokens, "way": "full attention"}
        if self.device.type == "cuda":
            available = torch.cuda.mem_get_info(self.device)[0]
            if self.counts.states * tokens > available:
                needed = self.counts.states * tokens / 1e9
                self.report.skip(
                    f"its keys and values need {needed:.0f} GB, and {available / 1e9:.0f} are free", **names
                )
                return
        self._cell("full attention", tokens, self._plain(ids), self.counts.full_reading(tokens))

    def _cell(self, way: str, tokens: int, function: Callable[[], Any], floor: Floor, **more: Any) -> None:
        before, seconds = self.last.get(way, (tokens, 0.0))
        growth = tokens / before if way != "full attention" else (tokens / before) ** 2

        def measure() -> dict[str, Any]:
            found = repeated(function, self.device, self.report.seconds_left)
            took = found["seconds"]
            return {
                **found,
                "tokens_per_second": round(tokens / took, 1),
                **floor.figures(self.rates, took),
            }

        names: dict[str, Any] = {"model": self.name, "tokens": tokens, "way": way, **more}
        if way == "full attention":
            names["attention"] = self.model.get_base_model().config._attn_implementation
        cell = self.report.cell(measure, expected_seconds=seconds * growth, **names)
        if cell["status"] == OK:
            self.last[way] = tokens, cell["seconds"]

    def _compare(self) -> None:
        """Beside each of our cells, how fast it is relative to the base model over the same chunks, and to full
        attention.
        """
        found = {(cell.get("tokens"), cell["way"]): cell for cell in self.report.cells if cell["model"] == self.name}
        for (tokens, way), cell in found.items():
            for other, field in (
                ("base model, same chunks", "of_base_model_rate"),
                ("full attention", "times_full_attention"),
            ):
                seconds = found.get((tokens, other), {}).get("seconds")
                if way in WAYS and seconds and cell.get("seconds"):
                    cell[field] = round(seconds / cell["seconds"], 3)
        self.report.write()


def storage_for(counts: Counts, tokens: int, device: torch.device) -> str | None:
    """Where chunks of an input are kept: on the device as they are, in 8 bits if they do not fit, else nowhere."""
    if device.type != "cuda":
        return "device"
    free(device)
    row = counts.sizes.chunk + counts.sizes.prompt * 3 // 2 + 64
    needed = counts.states * row * counts.chunks(tokens)
    room = STATES_SHARE * torch.cuda.mem_get_info(device)[0]
    return "device" if needed < room else "int8" if needed * INT8_SIZE < room else None
