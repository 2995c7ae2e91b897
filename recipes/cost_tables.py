"""The tables of docs/training.md: what training an adapter costs.

python recipes/cost_tables.py
"""

from __future__ import annotations

from typing import Any

from lib.cost import Counts, training_cost
from lib.shapes import LLAMA, llama

from focus_peft.config import FocusConfig
from focus_peft.hub.markdown import table


SHAPES = {name: llama(name) for name in LLAMA}
RANKS = (None, 16, 64, 256)
WINDOWS: dict[str, Any] = {"chunk_size": 2048, "local_size": 2048, "prompt_size": 512}
PLACES: dict[str, dict[str, Any]] = {
    "1 GPU": {"precision": "bfloat16"},
    "8 GPUs, ZeRO-2": {"zero_stage": 2, "processes": 8},
    "8 GPUs, ZeRO-2, offload": {"zero_stage": 2, "processes": 8, "offload_optimizer": True},
    "8 GPUs, ZeRO-3": {"zero_stage": 3, "processes": 8},
}


def tables(tokens: int = 8192) -> str:
    """The tables of docs/training.md, as Markdown."""
    return "\n\n".join([parameter_table(), memory_table(tokens), activation_table(tokens)])


def parameter_table() -> str:
    rows = []
    for name, config in SHAPES.items():
        counts = [Counts.of(config, FocusConfig(r=rank, **WINDOWS)) for rank in RANKS]
        trainable = [f"{count.trainable / 1e6:,.1f}M" for count in counts]
        rows.append([name, f"{counts[0].frozen / 1e9:.2f}B", *trainable])
    return table(["model", "frozen", "full twins", *(f"`r={r}`" for r in RANKS if r)], rows)


def memory_table(tokens: int) -> str:
    rows = []
    for name, config in SHAPES.items():
        for rank in (None, 64):
            focus = FocusConfig(r=rank, **WINDOWS)
            places = [{"precision": "deepspeed-bfloat16", **place} for place in PLACES.values()]
            costs = [training_cost(config, focus, tokens, **place) for place in places]
            cells = [f"{c.device / 1e9:.1f}" + (f" + {c.host / 1e9:.0f} RAM" if c.host else "") for c in costs]
            rows.append([name, "full" if rank is None else f"`r={rank}`", *cells])
    return table(["model", "twins", *PLACES], rows)


def activation_table(tokens: int) -> str:
    rows = []
    for name, config in SHAPES.items():
        focus = FocusConfig(r=64, **WINDOWS)
        plain, checkpointed = (training_cost(config, focus, tokens, checkpointing=on) for on in (False, True))
        sizes = [plain.cache, plain.activations, checkpointed.activations, plain.reading]
        rows.append([name, *(f"{size / 1e9:.2f}" for size in sizes)])
    return table(["model", "cache", "activations", "with gradient checkpointing", "reading"], rows)


if __name__ == "__main__":
    print(tables())
