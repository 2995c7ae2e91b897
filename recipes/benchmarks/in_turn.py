"""Tokens that are measured in turn, one of each way after another in one process, so that a slow spell of the machine
hits all ways alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from focus_peft import FocusConfig
from focus_peft.frozen.compat import CACHE
from focus_peft.kv.store import KeyValueStore
from focus_peft.passes.reader import Reader

from .setting import document, drawn_cache, heads_of, load, sizes_of, timed, with_peak


LAYERS, HIDDEN, CHUNK = 30, 64, 128
WARM_UP = 2
READ = 2  # chunks that are read in full, where some are


def host(options: dict[str, Any]) -> dict[str, Any]:
    """What a token costs on the host: a toy model of many thin layers, whose arithmetic takes next to no time, beside
    the base model's token behind the local window.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = get_peft_model(
        LlamaForCausalLM(config).eval(), FocusConfig(r=8, chunk_size=CHUNK, local_size=CHUNK, prompt_size=32)
    ).eval()
    ids = torch.randint(3, 256, (1, options["tokens"]), generator=torch.Generator().manual_seed(0))
    return _in_turn(model, ids, CHUNK, options["new_tokens"])


def token(options: dict[str, Any]) -> dict[str, Any]:
    """What a token of SmolLM2 costs, beside full attention's. Chunks are not read: their keys and values, and those of
    full attention, are drawn at random, which takes as long to attend to.
    """
    model, tokenizer = load(options, r=8, **sizes_of(options))
    ids = document(tokenizer, options["tokens"])
    assert model.base_model.reader  # which has now been checked on what is really read
    with patch.object(Reader, "_read_chunks", _draw_chunks):
        return _in_turn(model, ids, options["tokens"], options["new_tokens"])


def _in_turn(model: Any, ids: torch.Tensor, held: int, new_tokens: int) -> dict[str, Any]:
    """Median seconds of a streaming token in one pass and in two, of one with chunks read in full, without and with
    candidates in front of them, and of the base model's behind `held` tokens.
    """
    base, reader = model.get_base_model(), model.base_model.reader
    assert reader.reads_in_parts
    caches: dict[str, Any] = {}
    with torch.no_grad():
        with patch.object(reader, "reads_in_parts", False):
            caches["two_passes"] = model(ids, use_cache=True)[CACHE]
        caches["one_pass"] = model(ids, use_cache=True)[CACHE]
        for name, keep in (("read_chunks", False), ("read_behind_candidates", True)):
            caches[name] = model(ids, use_cache=True, read_chunks=READ, keep_candidates=keep)[CACHE]
        caches["base_model"] = drawn_cache(base, held)
        seconds: dict[str, list[float]] = {name: [] for name in caches}
        for _ in range(new_tokens + WARM_UP):
            for name, cache in caches.items():
                seconds[name].append(timed(lambda: base(ids[:, -1:], use_cache=True, **{CACHE: cache})))  # noqa: B023
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
    one = medians["one_pass"]
    return with_peak(
        {
            **{f"seconds_{name}": round(value, 5) for name, value in medians.items()},
            "one_pass_over_base_model": round(one / medians["base_model"], 3),
            "one_pass_over_two_passes": round(one / medians["two_passes"], 3),
            "read_chunks_over_base_model": round(medians["read_chunks"] / medians["base_model"], 3),
        }
    )


def _draw_chunks(reader: Reader, store: KeyValueStore, first: int, chunks: Sequence[Sequence[int]], *_: Any) -> None:
    """In place of reading chunks, draw their keys and values."""
    heads, width = heads_of(reader.model.config)
    lengths = list(map(len, chunks))
    for layer in range(reader.model.config.num_hidden_layers):
        keys, values = torch.randn(2, len(chunks), heads, max(lengths), width, dtype=reader.model.dtype)
        store.store_chunks(layer, slice(first, first + len(chunks)), (keys, values), lengths)
