"""Reading and decoding: focus_peft, what its arithmetic takes at least (the "floor"), and full attention."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch

from focus_peft.config import INFERENCE_FIELDS

from .setting import Pieces, document, load, sizes_of, timed, with_peak


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def steps(self) -> list[float]:
        """Seconds from token to token."""
        return [after - before for before, after in pairwise(self.times[1:])]  # the input comes first


def generating(model: Any, ids: torch.Tensor, new_tokens: int, **options: Any) -> dict[str, Any]:
    """Seconds until the first token, and the median of those from token to token."""
    warm_up = ids[:, : options.pop("warm_up")]
    model.generate(warm_up, max_new_tokens=2, do_sample=False, **options)
    clock = Clock()
    begin = time.perf_counter()
    model.generate(ids, max_new_tokens=new_tokens + 1, min_new_tokens=new_tokens + 1, streamer=clock, **options)
    return with_peak(
        {
            "tokens": ids.shape[1],
            "prefill_seconds": round(clock.times[1] - begin, 3),
            "seconds_per_token": round(statistics.median(clock.steps), 4) if clock.steps else None,
        }
    )


def focus(options: dict[str, Any]) -> dict[str, Any]:
    """Our `generate` with the given options; with `compiled`, parts of the model are compiled."""
    model, tokenizer = load(options, r=8, **sizes_of(options))
    ids = document(tokenizer, options["tokens"])
    given = {name: options[name] for name in INFERENCE_FIELDS if name in options}
    with parts_compiled(model, ids) if options.get("compiled") else contextlib.nullcontext():
        return generating(model, ids, options["new_tokens"], warm_up=model.settings().sizes.local + 8, **given)


@contextlib.contextmanager
def parts_compiled(model: Any, ids: torch.Tensor) -> Iterator[None]:
    """Within the context, what stands between the attentions is compiled: every MLP and norm, in the static shapes of
    a step.

    Attention writes to caches in place, which breaks the graph in every layer, so compiling more gives no larger
    graphs.
    """
    for layer in model.get_base_model().model.layers:
        for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            part.compile()
    # focus_peft keeps compiled modules from running, for its passes have many shapes; those of steps are alike
    with patch("focus_peft.passes.reader.uncompiled", contextlib.nullcontext):
        model.generate(ids, max_new_tokens=3, min_new_tokens=3)  # compiles
        yield


def full_attention(options: dict[str, Any]) -> dict[str, Any]:
    """The base model's `generate` on everything, beyond the length that it was made for if need be."""
    model, tokenizer = load(options, r=8)
    ids = document(tokenizer, options["tokens"])
    with model.disable_adapter():
        return generating(model, ids, options["new_tokens"], warm_up=64)


def reading_floor(options: dict[str, Any]) -> dict[str, Any]:
    """The base model over as many tokens as our prefill, in the same shapes, with transformers' caches."""
    model, tokenizer = load(options, r=8, **sizes_of(options))
    pieces = Pieces(document(tokenizer, options["tokens"]), model.settings())
    with model.disable_adapter():
        base = model.base_model.model
        timed(lambda: pieces.forward_local(base, 0))
        return with_peak({"prefill_seconds": round(timed(lambda: pieces.read(base)), 3), "seconds_per_token": None})


def step_floor(options: dict[str, Any]) -> dict[str, Any]:
    """The base model over one step's tokens: 2 · chunks + 1 behind what is held; exact: window + 2 · chunks."""
    model, tokenizer = load(options, r=8, **sizes_of(options))
    pieces = Pieces(document(tokenizer, options["tokens"]), model.settings())
    with model.disable_adapter():
        base = model.base_model.model
        if options["decoding"] == "exact":
            seconds = [timed(lambda: pieces.forward_local(base, 2 * len(pieces.chunks))) for _ in range(3)]
        else:
            held = pieces.held_states(base)
            seconds = [timed(lambda: pieces.step(base, held)) for _ in range(options["new_tokens"] + 2)]
    return with_peak({"prefill_seconds": None, "seconds_per_token": round(statistics.median(seconds[1:]), 4)})
