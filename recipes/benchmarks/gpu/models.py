"""Models in the shapes of published ones, with random weights that are made where they are used: weights do not change
times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from lib.shapes import llama, qwen3_4b
from peft import get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedConfig

from focus_peft import FocusConfig

from .report import Options


SHAPES: dict[str, Callable[..., PreTrainedConfig]] = {"Llama-2-7B": partial(llama, "7B"), "Qwen3-4B": qwen3_4b}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
# What is otherwise in the small setting
SMALL: dict[str, dict[str, int]] = {
    "Llama-2-7B": {**TINY, "vocab_size": 200, "num_key_value_heads": 4},
    "Qwen3-4B": {**TINY, "vocab_size": 200, "num_key_value_heads": 2, "head_dim": 16},
}


@dataclass(frozen=True)
class Sizes:
    """Sizes in tokens: the paper's, or tiny ones."""

    chunk: int
    local: int
    prompt: int
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, options: Options) -> Sizes:
        if options.small:
            return cls(32, 32, 8, (96, 160))
        return cls(2048, 2048, 512, (8192, 32768, 131072, 400000))


def config_of(name: str, options: Options) -> PreTrainedConfig:
    attention = "sdpa"
    if options.device.type == "cuda" and transformers.utils.is_flash_attn_2_available():
        attention = "flash_attention_2"
    fields = SMALL[name] if options.small else {}
    # nothing stops early
    return SHAPES[name](**fields, bos_token_id=1, eos_token_id=None, pad_token_id=0, attn_implementation=attention)


def random_model(name: str, options: Options, **fields: Any) -> Any:
    """A model in a published shape, wrapped, made on the device in its own type.

    Args:
        name (`str`): A key of `SHAPES`.
        options (`Options`): Where, and in which type.
        **fields: Of `FocusConfig`.
    """
    torch.manual_seed(0)
    with torch.device(options.device):
        base = AutoModelForCausalLM.from_config(config_of(name, options), dtype=options.dtype)
    base.tie_weights()
    base.generation_config.eos_token_id = None
    sizes = Sizes.of(options)
    given = {"chunk_size": sizes.chunk, "local_size": sizes.local, "prompt_size": sizes.prompt, **fields}
    with torch.device(options.device):
        return get_peft_model(base, FocusConfig(**given)).eval()


def random_document(model: Any, tokens: int, options: Options, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Ids (rows, tokens), special tokens left out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.get_base_model().config.vocab_size, (rows, tokens), generator=generator)
    return ids.to(options.device)
