"""
Every family of models that the matrix (test_families.py) runs over, as tiny configurations.

A family is two to four layers of 32 features; what makes it special is spelled out. Which transformers has it is found
out when a model is built, so that an old release skips what it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from packaging.version import Version


_PLAIN = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 8}
_ALTERNATE = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 6,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
_LATENT = {
    **_PLAIN,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
_BOTH, _EAGER = ("sdpa", "eager"), ("eager",)
# transformers 5.24 rewrote the attention of GPT-J and CodeGen
SEES_TABLES = Version(transformers.__version__) >= Version("5.24")
_TABLE = _BOTH if SEES_TABLES else _EAGER


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        config (`str`): The name of its configuration class in transformers.
        fields (`Mapping`): What the tiny configuration differs in from the defaults.
        about (`str`): Its projections and positions, in a line.
        positions (`str`): "rotary" (differences count; none at all is rotary too), "rotary table" (they do, but
            positions start at 0), "learned" (positions themselves count) or "alibi" (places of keys in the cache do).
        attention (`tuple[str, ...]`): The implementations of attention that transformers has for it, its default
            first.
    """

    config: str
    fields: Mapping[str, Any]
    about: str
    positions: str = "rotary"
    attention: tuple[str, ...] = _BOTH

    @property
    def missing(self) -> str | None:
        """Why this transformers cannot build it, if so."""
        if hasattr(transformers, self.config):
            return None
        return f"transformers {transformers.__version__} has no {self.config}"


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig", _HEADS, "q, k, v, o; rotary"),
    "mistral": Family(
        "MistralConfig", {**_HEADS, "sliding_window": 7}, "q, k, v, o; rotary, every layer a sliding window"
    ),
    "mistral_full": Family(
        "MistralConfig", {**_HEADS, "sliding_window": None}, "q, k, v, o; rotary, no sliding window"
    ),
    "ministral": Family(
        "MinistralConfig", {**_HEADS, **_ALTERNATE}, "q, k, v, o; rotary, some layers a sliding window"
    ),
    "qwen2": Family("Qwen2Config", _GROUPED, "q, k, v with bias, o; rotary"),
    "qwen2_moe": Family(
        "Qwen2MoeConfig",
        {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 24},
        "q, k, v with bias, o; rotary; experts, one shared",
    ),
    "qwen3": Family("Qwen3Config", _HEADS, "q, k, v, o, norms of q and k; rotary"),
    "qwen3_moe": Family("Qwen3MoeConfig", {**_HEADS, **_EXPERTS}, "q, k, v, o, norms of q and k; rotary; experts"),
    "mixtral": Family("MixtralConfig", {**_GROUPED, **_EXPERTS}, "q, k, v, o; rotary; experts"),
    "gemma": Family("GemmaConfig", _HEADS, "q, k, v, o; rotary"),
    "gemma2": Family(
        "Gemma2Config",
        {**_HEADS, **_ALTERNATE},
        "q, k, v, o, capped logits; rotary, some layers a sliding window",
        "rotary",
        _EAGER,
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        {**_HEADS, **_ALTERNATE},
        "q, k, v, o, norms of q and k; two rotary bases, some layers a sliding window",
    ),
    "gemma4": Family(
        "Gemma4TextConfig",
        # by default, each layer has embeddings of its own for 262,144 tokens
        {**_HEADS, **_ALTERNATE, "vocab_size_per_layer_input": 120, "hidden_size_per_layer_input": 8},
        "q, k, v, o, norms of q, k and v; two rotary bases, some layers a sliding window",
    ),
    "olmo": Family("OlmoConfig", _GROUPED, "q, k, v, o; rotary"),
    "olmo2": Family("Olmo2Config", _GROUPED, "q, k, v, o, norms of q and k; rotary"),
    "olmo3": Family(
        "Olmo3Config", {**_GROUPED, **_ALTERNATE}, "q, k, v, o, norms of q and k; rotary, some layers a sliding window"
    ),
    "olmoe": Family("OlmoeConfig", {**_GROUPED, **_EXPERTS}, "q, k, v, o, norms of q and k; rotary; experts"),
    "granite": Family("GraniteConfig", _GROUPED, "q, k, v, o; rotary; scaled attention and residuals"),
    "granitemoe": Family("GraniteMoeConfig", {**_GROUPED, **_EXPERTS}, "q, k, v, o; rotary; experts"),
    "cohere": Family("CohereConfig", _GROUPED, "q, k, v, o; interleaved rotary; parallel MLP"),
    "cohere2": Family(
        "Cohere2Config",
        {**_GROUPED, **_ALTERNATE},
        "q, k, v, o; interleaved rotary in sliding layers, no positions in full ones",
    ),
    "smollm3": Family(
        "SmolLM3Config", {**_GROUPED, "num_hidden_layers": 4}, "q, k, v, o; rotary, every fourth layer none"
    ),
    "stablelm": Family("StableLmConfig", _GROUPED, "q, k, v, o; rotary in a quarter of each head"),
    "gpt_oss": Family(
        "GptOssConfig",
        {**_HEADS, **_EXPERTS, **_ALTERNATE},
        "q, k, v, o with bias, attention sinks; rotary (yarn), some layers a sliding window; experts",
        "rotary",
        _EAGER,
    ),
    "phi": Family("PhiConfig", _GROUPED, "q, k, v, dense with bias; rotary in half of each head; parallel MLP"),
    "phi3": Family("Phi3Config", _GROUPED, "fused qkv, o; rotary"),
    "gpt_neox": Family(
        "GPTNeoXConfig", {**_PLAIN, "rotary_pct": 0.5}, "fused query_key_value, dense; rotary in half of each head"
    ),
    "falcon": Family(
        "FalconConfig",
        {**_PLAIN, "alibi": False, "multi_query": True},
        "fused query_key_value for one key head, dense; rotary",
    ),
    "falcon_new": Family(
        "FalconConfig",
        {**_PLAIN, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
        "fused query_key_value for grouped keys, dense; rotary",
    ),
    "falcon_alibi": Family("FalconConfig", {**_PLAIN, "alibi": True}, "fused query_key_value, dense; ALiBi", "alibi"),
    "mpt": Family(
        "MptConfig",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
        "fused Wqkv, out_proj; ALiBi",
        "alibi",
        _EAGER,
    ),
    "bloom": Family(
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "fused query_key_value, dense; ALiBi",
        "alibi",
        _EAGER,
    ),
    "gpt2": Family(
        "GPT2Config", {**_GPT2, "n_inner": 48}, "fused c_attn, c_proj (Conv1D); learned positions", "learned"
    ),
    "gpt_bigcode": Family(
        "GPTBigCodeConfig", _GPT2, "fused c_attn for one key head, c_proj; learned positions", "learned"
    ),
    "opt": Family(
        "OPTConfig",
        {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32},
        "q, k, v, out with bias; learned positions",
        "learned",
    ),
    "biogpt": Family("BioGptConfig", _PLAIN, "q, k, v, out with bias; learned positions", "learned"),
    "starcoder2": Family("Starcoder2Config", _GROUPED, "q, k, v, o with bias; rotary"),
    "glm": Family("GlmConfig", _HEADS, "q, k, v, o; interleaved rotary in half of each head"),
    "glm4": Family("Glm4Config", _HEADS, "q, k, v, o; interleaved rotary in half of each head"),
    "glm4_moe": Family(
        "Glm4MoeConfig",
        {**_HEADS, **_EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
        "q, k, v, o; rotary in half of each head; experts, one shared",
    ),
    "helium": Family("HeliumConfig", _HEADS, "q, k, v, o; interleaved rotary"),
    "nemotron": Family("NemotronConfig", _GROUPED, "q, k, v, o; rotary in half of each head"),
    "persimmon": Family(
        "PersimmonConfig", _PLAIN, "fused query_key_value, dense, norms of q and k; rotary in half of each head"
    ),
    "arcee": Family("ArceeConfig", _GROUPED, "q, k, v, o; rotary"),
    "seed_oss": Family("SeedOssConfig", _HEADS, "q, k, v with bias, o; rotary"),
    "ernie4_5": Family("Ernie4_5Config", _HEADS, "q, k, v, o; interleaved rotary"),
    "exaone4": Family(
        "Exaone4Config",
        {**_GROUPED, **_ALTERNATE},
        "q, k, v, o, norms of q and k; rotary in sliding layers, no positions in full ones",
    ),
    "minimax_m2": Family(
        "MiniMaxM2Config",
        {**_HEADS, **_EXPERTS},
        "q, k, v, o, norms of q and k; rotary; experts",
    ),
    "nanochat": Family("NanoChatConfig", _GROUPED, "q, k, v, o, norms of rotated q and k without weights; rotary"),
    "cwm": Family("CwmConfig", {**_HEADS, **_ALTERNATE}, "q, k, v, o; rotary (llama3), some layers a sliding window"),
    "doge": Family("DogeConfig", _GROUPED, "q, k, v, o, a mask made of the values; rotary"),
    "apertus": Family("ApertusConfig", _GROUPED, "q, k, v, o, norms of q and k; rotary"),
    "bitnet": Family("BitNetConfig", _GROUPED, "q, k, v, o with a norm before o; rotary"),
    "diffllama": Family("DiffLlamaConfig", _GROUPED, "q, k, v, o, difference of two attentions; rotary"),
    "lfm2": Family(
        "Lfm2Config",
        {**_GROUPED, "layer_types": ["full_attention", "full_attention"]},
        "q, k, v, out, norms of q and k; rotary (attention layers only, no convolutions)",
    ),
    "gptj": Family(
        "GPTJConfig",
        {**_GPT2, "rotary_dim": 4},
        "q, k, v, out; interleaved rotary from a table",
        "rotary table",
        _TABLE,
    ),
    "codegen": Family(
        "CodeGenConfig",
        {**_GPT2, "rotary_dim": 4},
        "fused qkv, out; interleaved rotary from a table",
        "rotary table",
        _TABLE,
    ),
    "deepseek_v2": Family(
        "DeepseekV2Config",
        {**_LATENT, "topk_method": "greedy"},
        "latent attention; rotary in a part of each head; experts",
    ),
    "deepseek_v3": Family("DeepseekV3Config", _LATENT, "latent attention; rotary in a part of each head; experts"),
}

# The families that tests of single features run over; together they have every kind of projection, position and mask
CORE = ("gemma2", "gemma3", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3")

# What an older transformers reads in a way that focus_peft refuses at the first use, by family and attention
IS_OLD = Version(transformers.__version__) < Version("5.23")
OLD: dict[tuple[str, str], str] = {
    (
        "gpt2",
        "eager",
    ): "older transformers let eager attention of GPT-2 hide keys by their place, whatever the mask says",
    # (and in float64 they fail by themselves)
    ("mpt", "eager"): "older transformers add MPT's biases to the keys of the new tokens alone",
    ("doge", "sdpa"): "older transformers let sdpa attention of Doge read in both directions where nothing is padded",
}


def positions_of(config: transformers.PreTrainedConfig) -> str:
    """The kind of positions of a model, by its configuration; rotary for one that is not in the table."""
    if getattr(config, "alibi", False):
        return "alibi"
    same = [kind.positions for kind in FAMILIES.values() if kind.config == type(config).__name__]
    return same[0] if same else "rotary"
