"""Where the time of one step of decoding goes, phase by phase, beside the same step of the base model alone."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch

import focus_peft.decoding.cache
import focus_peft.decoding.local_states
import focus_peft.frozen.parts_attention
import focus_peft.passes.chunk_pass
from focus_peft.kv.pass_caches import PartsCache, PassCache
from focus_peft.layer import TwinLayer
from focus_peft.passes.reader import Reader

from .setting import Pieces, document, load, sizes_of, timed


# What is timed by itself: (phase, where its function is, the function's name). Time in a phase within another counts
# for the inner one
PHASES: list[tuple[str, Any, str]] = [
    ("chunk rows: where tokens go", focus_peft.passes.chunk_pass, "chunk_pass_input"),
    ("local window: where tokens go", focus_peft.decoding.local_states, "local_pass_input"),
    ("masks as numbers", Reader, "_masks"),
    ("evaluation mode, and which pass runs", Reader, "_frozen"),
    ("keys and values put in their places", PassCache, "update"),
    ("candidates gathered", PartsCache, "_chosen"),
    ("projections q, k, v and o, frozen and twins", TwinLayer, "forward"),
    ("attention", focus_peft.frozen.parts_attention, "attend_side_by_side"),
    ("the rest of the model", Reader, "call"),
    ("bookkeeping of streams and prompts", focus_peft.decoding.cache.FocusCache, "read"),
]
REST = "`generate`: everything else"


class Phases:
    """Seconds of each phase, without those of the phases within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = [REST]
        self._since = time.perf_counter()

    def switch(self) -> None:
        """Whatever ran until now is over."""
        now = time.perf_counter()
        self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now

    @contextlib.contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        self.switch()
        self._stack.append(phase)
        try:
            yield
        finally:
            self.switch()
            self._stack.pop()

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed as a phase. Of a context manager, entering and leaving are timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.inside(phase):
                found = function(*args, **kwargs)
            return self._entered(phase, found) if isinstance(found, contextlib.AbstractContextManager) else found

        return call

    @contextlib.contextmanager
    def _entered(self, phase: str, manager: Any) -> Iterator[Any]:
        with self.inside(phase):
            value = manager.__enter__()
        try:
            yield value
        finally:
            with self.inside(phase):
                manager.__exit__(None, None, None)


class Marks:
    """A streamer: phases count from the second token on, when everything has its size."""

    def __init__(self, phases: Phases) -> None:
        self.phases, self.calls = phases, 0

    def put(self, value: torch.Tensor) -> None:
        self.calls += 1
        self.phases.switch()
        if self.calls == 3:  # the input, the first and the second token
            self.phases.seconds.clear()

    def end(self) -> None:
        self.phases.switch()


def step_profile(options: dict[str, Any]) -> dict[str, Any]:
    """Mean seconds of each phase of a streaming step, and the base model's median over as many tokens."""
    model, tokenizer = load(options, r=8, **sizes_of(options))
    ids = document(tokenizer, options["tokens"])
    phases = Phases()
    steps = options["new_tokens"]
    new = steps + 2  # the first two are not timed
    with contextlib.ExitStack() as patches:
        for phase, owner, name in PHASES:
            patches.enter_context(patch.object(owner, name, phases.timed(phase, getattr(owner, name))))
        model.generate(ids, max_new_tokens=new, min_new_tokens=new, streamer=Marks(phases), do_sample=False)
    pieces = Pieces(ids, model.settings())
    with model.disable_adapter():
        base = model.base_model.model
        held = pieces.held_states(base)
        floor = [timed(lambda: pieces.step(base, held)) for _ in range(steps + 1)][1:]
    return {
        "phases": {phase: seconds / steps for phase, seconds in phases.seconds.items()},
        "floor": statistics.median(floor),
    }
