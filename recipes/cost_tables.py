"""The tables of docs/training.md: what training an adapter costs.

python recipes/cost_tables.py
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

from focus_peft.config import FocusConfig
from focus_peft.hub.markdown import table
from focus_peft.trainer.cost import Counts, training_cost


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=hidden == 2048,
    )


# The shapes of Llama 3.2 1B, Llama 2 7B, Llama 3 8B and Llama 3 70B
SHAPES = {
    "1B": _llama(2048, 8192, 16, 32, 8, 128256),
    "7B": _llama(4096, 11008, 32, 32, 32, 32000),
    "8B": _llama(4096, 14336, 32, 32, 8, 128256),
    "70B": _llama(8192, 28672, 80, 64, 8, 128256),
}
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
