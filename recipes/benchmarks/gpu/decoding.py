"""Milliseconds of a generated token, behind a memory that is read once: streaming, exact, one chunk at a time, full
attention.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from focus_peft.frozen.compat import CACHE

from ..reading import Clock
from ..setting import drawn_cache
from .floors import Counts
from .measuring import Rates, measure_models, wait
from .models import Sizes, random_document
from .reading import INT8_SIZE, storage_for
from .report import OK, Report, free


# Our ways to decode: what `generate` is given, and how many tokens are timed
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "streaming": ({"decoding": "streaming"}, 16),
    "exact": ({"decoding": "exact"}, 6),
    "streaming, one chunk at a time": ({"decoding": "streaming", "chunk_batch_size": 1}, 2),
}
# Tokens before those that are timed
WARM_UP = 1


def run(report: Report) -> None:
    def measure(rates: Rates, name: str, model: Any) -> None:
        for tokens in Sizes.of(report.options).lengths:
            _measure(report, rates, name, model, tokens)

    measure_models(report, measure)


def _measure(report: Report, rates: Rates, name: str, model: Any, tokens: int) -> None:
    """The cells of one model at one length."""
    options, sizes = report.options, Sizes.of(report.options)
    device, counts = options.device, Counts(model, sizes)
    ids = random_document(model, tokens, options)
    document, question = ids[:, : -sizes.local], ids[:, -sizes.local :]
    names: dict[str, Any] = {"model": name, "tokens": tokens}
    storage = storage_for(counts, tokens, device)
    held: list[Any] = []

    def encode() -> dict[str, Any]:
        held.append(model.encode(document, storage=storage, progress=False))
        return {"memory_gb": round(held[0].nbytes / 1e9, 3), "chunks": held[0].num_chunks}

    if storage is None:
        report.skip("its keys and values do not fit the card", **names, way="all of ours")
    elif report.cell(encode, **names, way="encoding", storage=storage)["status"] == OK:
        for way, (given, count) in WAYS.items():

            def measure(given: dict[str, Any] = given, count: int = count) -> dict[str, Any]:
                steps = _steps(model, question, held[0], min(count, 3) if options.small else count, given)
                floor = counts.token(tokens, given["decoding"], INT8_SIZE if storage == "int8" else 1.0)
                return {**_figures(steps), **floor.figures(rates, statistics.median(steps))}

            report.cell(measure, **names, way=way, storage=storage)
    held.clear()
    free(device)

    def full() -> dict[str, Any]:
        with model.disable_adapter():
            steps = _full_attention(model.get_base_model(), tokens, 3 if options.small else WAYS["streaming"][1])
        return {**_figures(steps), **counts.full_token(tokens).figures(rates, statistics.median(steps))}

    report.cell(full, **names, way="full attention", attention=model.get_base_model().config._attn_implementation)


def _steps(model: Any, question: torch.Tensor, memory: Any, count: int, given: dict[str, Any]) -> list[float]:
    """Seconds from token to token of our `generate`."""
    clock, new = Clock(), count + WARM_UP + 1
    model.generate(
        question, memory=memory, max_new_tokens=new, do_sample=False, streamer=clock, progress=False, **given
    )
    return clock.steps[WARM_UP:]


@torch.no_grad()
def _full_attention(base: Any, tokens: int, count: int) -> list[float]:
    """Seconds of tokens of the base model behind so many others, with the cache that its `generate` makes."""
    cache = drawn_cache(base, tokens)
    token, steps = torch.full((1, 1), 9, device=base.device), []
    for number in range(count + WARM_UP):
        place = torch.full((1, 1), tokens + number, device=base.device)
        wait(base.device)
        begin = time.perf_counter()
        logits = base(token, position_ids=place, use_cache=True, logits_to_keep=1, **{CACHE: cache}).logits
        token = logits[:, -1:].argmax(-1)
        token.cpu()  # as a loop that looks for the end does
        steps.append(time.perf_counter() - begin)
    return steps[WARM_UP:]


def _figures(steps: list[float]) -> dict[str, Any]:
    middle = statistics.median(steps)
    return {
        "seconds": round(middle, 6),
        "milliseconds_per_token": round(1000 * middle, 3),
        "tokens_per_second": round(1 / middle, 2),
        "steps": [round(step, 6) for step in steps],
    }
