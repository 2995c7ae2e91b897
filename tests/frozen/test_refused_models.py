"""
A model that cannot be read in chunks is refused, by name and with the reason, before anything is generated.

What a model says of itself is checked when it is wrapped. Some models only show what they do when they read, so they
are refused at the first use, by a check on a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import transformers
from conftest import VOCABULARY, make_tiny_model, random_ids, randomize, small_config
from peft import get_peft_model
from refusal import refusal
from torch import nn


IDS = random_ids(30)[None]
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAIN = {
    **{**TOKENS, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "max_position_embeddings": 128,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
LINEAR = {f"linear_num_{of}_heads": 2 for of in ("key", "value")} | {
    f"linear_{of}_head_dim": 8 for of in ("key", "value")
}
T5 = {**TOKENS, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
BART = {**TOKENS, "d_model": 16} | {
    f"{part}_{what}": number
    for part in ("encoder", "decoder")
    for what, number in (("layers", 1), ("ffn_dim", 16), ("attention_heads", 2))
}
IMAGES = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 8, "patch_size": 4},
}


def build(name: str, config: str, **fields: Any) -> Callable[[], nn.Module]:
    """A tiny model with random weights, by the names of its class and of its configuration's, "Config" left out."""

    def make() -> nn.Module:
        if not hasattr(transformers, f"{config}Config"):
            pytest.skip(f"transformers {transformers.__version__} has no {config}Config")
        model = getattr(transformers, name)(getattr(transformers, f"{config}Config")(**fields)).eval()
        randomize(model)  # large enough that positions and masks matter
        return model

    return make


def causal(config: str, **fields: Any) -> Callable[[], nn.Module]:
    return build(f"{config.removesuffix('Text')}ForCausalLM", config, **fields)


def multimodal(config: str, **fields: Any) -> tuple[Callable[[], nn.Module], tuple[str, ...]]:
    name = f"{config}ForConditionalGeneration"
    return build(name, config, **fields), (name, "multimodal", "text model alone", "`AutoModelForCausalLM`")


def attention_of_another_name() -> nn.Module:
    model = make_tiny_model()
    for layer in model.model.layers:
        layer.self_attn.__class__ = type("Mixer", (type(layer.self_attn),), {})
    return model


def implemented_by(name: str) -> tuple[Callable[[], nn.Module], tuple[str, ...]]:
    def make() -> nn.Module:
        model = make_tiny_model()
        model.config._attn_implementation = name  # what loading with `attn_implementation=name` sets
        return model

    return make, ("`attn_implementation`", repr(name), "sdpa")


def flash_attention_that_cannot_be_switched() -> nn.Module:
    model = make_tiny_model()
    fixed = classmethod(lambda cls: False)
    model.__class__ = type("FixedForCausalLM", (type(model),), {"_can_set_attn_implementation": fixed})
    model.config._attn_implementation = "flash_attention_2"
    return model


NO_HEAD = ("no language-model head", "`AutoModelForCausalLM`")
UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "T5": (
        build("T5ForConditionalGeneration", "T5", **T5),
        ("T5ForConditionalGeneration", "encoder-decoder", "decoder-only"),
    ),
    "BART": (build("BartForConditionalGeneration", "Bart", **BART), ("encoder-decoder", "decoder-only")),
    "BERT without a head": (build("BertModel", "Bert", **PLAIN), NO_HEAD),
    "masked BERT": (build("BertForMaskedLM", "Bert", **PLAIN), ("BertForMaskedLM", *NO_HEAD)),
    "Llama without a head": (build("LlamaModel", "Llama", **GROUPED), ("LlamaModel", *NO_HEAD)),
    "a classifier": (build("LlamaForSequenceClassification", "Llama", **PLAIN), NO_HEAD),
    "no language model": (lambda: nn.Linear(3, 3), ("`model`", "Linear", "`AutoModelForCausalLM`")),
    "no projection": (attention_of_another_name, ("No attention projection", "`target_modules`")),
    "Mamba": (
        causal("Mamba", **TOKENS, hidden_size=16, state_size=4, num_hidden_layers=1),
        ("MambaForCausalLM", "no attention"),
    ),
    "RWKV": (causal("Rwkv", **TOKENS, hidden_size=16, num_hidden_layers=2), ("attention",)),
    "Jamba": (causal("Jamba", **GROUPED, num_experts=2, attn_layer_period=2, attn_layer_offset=1), ("layers",)),
    "Qwen3-Next": (
        causal("Qwen3Next", **HEADS, **EXPERTS, **LINEAR, layer_types=["linear_attention", "full_attention"]),
        ("Qwen3NextForCausalLM", "linear_attention"),
    ),
    "LFM2": (causal("Lfm2", **GROUPED, layer_types=["conv", "full_attention"]), ("Lfm2ForCausalLM", "'conv'")),
    "Llama 4": (
        causal("Llama4Text", **HEADS, num_local_experts=2, intermediate_size_mlp=8, attention_chunk_size=8),
        ("Llama4ForCausalLM", "chunked_attention"),
    ),
    "LLaVA": multimodal(
        "Llava",
        vision_config={"model_type": "clip_vision_model", **IMAGES},
        text_config={"model_type": "llama", **GROUPED},
    ),
    "Qwen2-VL": multimodal(
        "Qwen2VL",
        vision_config={"embed_dim": 16, "depth": 1, "num_heads": 2, "hidden_size": 16, "mlp_ratio": 1},
        text_config=GROUPED,
    ),
    "Gemma 3": multimodal("Gemma3", vision_config=IMAGES, text_config=HEADS, mm_tokens_per_image=4),
    "Mistral 3": multimodal(
        "Mistral3",
        vision_config={"model_type": "pixtral", **IMAGES},
        text_config={"model_type": "mistral", **GROUPED},
    ),
    "eager attention in pages": implemented_by("paged|eager"),
    "flash attention in pages": implemented_by("paged|flash_attention_2"),
    "attention of one's own": implemented_by("my_own_kernel"),
    "flash attention that cannot be switched": (
        flash_attention_that_cannot_be_switched,
        ("`attn_implementation`", "FixedForCausalLM", "sdpa"),
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_model_that_cannot_be_read_in_chunks_is_refused_and_left_alone(kind: str) -> None:
    make, named = UNSUPPORTED[kind]
    base = make()
    before = [(name, id(module)) for name, module in base.named_modules()]
    with refusal(*named) as caught:
        get_peft_model(base, small_config())
    assert [(name, id(module)) for name, module in base.named_modules()] == before
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert "ALiBi" not in str(caught.value), "another reason than the true one"


def test_projections_of_an_unknown_attention_can_be_named() -> None:
    config = small_config(target_modules=["q_proj", "v_proj"])
    assert len(get_peft_model(attention_of_another_name(), config).base_model.targeted_module_names) == 4


# By what they do when they read: (model, what the refusal says)
UNREADABLE: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "GPT-Neo hides keys by their place in the cache, whatever the mask says": (
        causal(
            "GPTNeo",
            **TOKENS,
            **{"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128},
            attention_types=[[["global", "local"], 1]],
        ),
        ("GPTNeoForCausalLM", "differ"),
    ),
    "sinusoidal positions of XGLM come from a table without negative ones": (
        causal(
            "XGLM",
            **TOKENS,
            **{"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 128},
        ),
        ("XGLMForCausalLM",),
    ),
    # a weight for each feature, put on keys that are rotated already: differences of positions are not all that counts
    "HunYuan has norms behind the rotation": (
        causal("HunYuanDenseV1", **{**HEADS, "hidden_size": 32, "num_attention_heads": 4}),
        ("HunYuanDenseV1ForCausalLM", "differ"),
    ),
    "an encoder with a language-model head sees what follows": (
        build("BertLMHeadModel", "Bert", **PLAIN, is_decoder=False),
        ("BertLMHeadModel", "position"),
    ),
}
CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "generate": lambda model: model.generate(IDS, max_new_tokens=2),
    "forward": lambda model: model(IDS),
    "loss": lambda model: model(IDS, labels=IDS),
    "encode": lambda model: model.encode(IDS),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_model_that_would_be_read_wrong_is_refused_at_its_first_use(kind: str, call: str) -> None:
    make, named = UNREADABLE[kind]
    wrapped = get_peft_model(make(), small_config()).eval()
    with refusal(*named, "cannot be read in chunks"):
        CALLS[call](wrapped)
