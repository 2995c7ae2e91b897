"""Shapes of base models, for what can be said of them without their weights."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from lib.base_model import ModelArguments
from lib.byte_tokenizer import byte_tokenizer
from lib.packaged_model import PACKAGED, saved_model


# (hidden, inner, layers, heads, key/value heads, vocabulary)
LLAMA = {
    "1B": (2048, 8192, 16, 32, 8, 128256),
    "7B": (4096, 11008, 32, 32, 32, 32000),
    "8B": (4096, 14336, 32, 32, 8, 128256),
    "70B": (8192, 28672, 80, 64, 8, 128256),
}


def llama(size: str, **fields: Any) -> LlamaConfig:
    """The shape of Llama 3.2 1B, Llama 2 7B, Llama 3 8B or Llama 3 70B, but for the given fields."""
    hidden, inner, layers, heads, kv_heads, vocabulary = LLAMA[size]
    shape = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096 if size == "7B" else 8192,
        "tie_word_embeddings": size == "1B",
    }
    return LlamaConfig(**{**shape, **fields})


def qwen3_4b(**fields: Any) -> Qwen3Config:
    """The shape of Qwen3 4B, but for the given fields."""
    shape = {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    }
    return Qwen3Config(**{**shape, **fields})


def qwen2_5_0_5b() -> Qwen2Config:
    """The shape of Qwen2.5 0.5B."""
    return Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )


# Those of the recipes, where the Hub cannot be reached
NAMED: dict[str, Any] = {
    "meta-llama/Llama-2-7b-chat-hf": lambda: llama("7B"),
    "meta-llama/Meta-Llama-3-8B": lambda: llama("8B"),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": qwen2_5_0_5b,
    "Qwen/Qwen3-4B": qwen3_4b,
}


def shape_of(model: ModelArguments) -> PreTrainedConfig:
    """The configuration of a base model, of which no weight is read.

    Raises:
        OSError: if it is neither here nor on a Hub that can be reached.
    """
    if model.random is not None:
        return AutoConfig.for_model(**{"vocab_size": len(byte_tokenizer()), **model.random})
    path = str(saved_model() if model.name_or_path == PACKAGED else model.name_or_path)
    try:
        return AutoConfig.from_pretrained(path, revision=model.revision or "main", gguf_file=model.gguf_file)
    except OSError as error:
        if path in NAMED:
            return NAMED[path]()
        raise OSError(
            f"`model.name_or_path` is {path!r}, whose configuration is not here, and the Hub cannot be asked for it: "
            f"{str(error).splitlines()[0]}"
        ) from error
