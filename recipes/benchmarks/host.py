"""What a token costs on the host: a toy model of many thin layers, whose arithmetic takes next to no time."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from peft import get_peft_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from focus_peft import FocusConfig
from focus_peft.frozen.compat import CACHE

from .setting import with_peak


LAYERS, HIDDEN, CHUNK = 30, 64, 128


def host(options: dict[str, Any]) -> dict[str, Any]:
    """The median seconds of a token, of the base model and of streaming decoding in turn, token by token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    base = LlamaForCausalLM(config).eval()
    model = get_peft_model(base, FocusConfig(r=8, chunk_size=CHUNK, local_size=CHUNK, prompt_size=32)).eval()
    ids = torch.randint(3, 256, (1, options["tokens"]), generator=torch.Generator().manual_seed(0))
    window, plain = ids[:, -CHUNK:], DynamicCache(config=config)
    seconds: dict[str, list[float]] = {"base": [], "streaming": []}
    with torch.no_grad():
        base(window, **{CACHE: plain})
        cache = model(ids, use_cache=True)[CACHE]
        for _ in range(options["new_tokens"] + 2):  # of which the first two warm up
            for name, states in (("base", plain), ("streaming", cache)):
                begin = time.perf_counter()
                base(ids[:, -1:], use_cache=True, **{CACHE: states})
                seconds[name].append(time.perf_counter() - begin)
    base_seconds, streaming = (statistics.median(values[2:]) for values in seconds.values())
    return with_peak(
        {
            "seconds_per_token": round(streaming, 5),
            "seconds_per_token_of_the_base_model": round(base_seconds, 5),
            "over_the_base_model": round(streaming / base_seconds, 2),
        }
    )
