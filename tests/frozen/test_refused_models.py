"""
A model that cannot be read in chunks is refused, by name and with the reason, before anything is generated.

What a model says of itself is looked at when it is wrapped. Some models only show what they do when they read, so they are refused
at the first use, by a check on a few tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from conftest import VOCABULARY, random_ids, randomize
from peft import PeftModel, get_peft_model
from refusal import refusal
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from focus_peft import FocusConfig


PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def make(kind: Any, config: str, **fields: Any) -> PreTrainedModel:
    """A model with random weights.

    Args:
        kind: One of transformers' `Auto...` classes, or the name of a model class.
        config (`str`): The name of its configuration class.
        fields: Fields of the configuration.
    """
    if not hasattr(transformers, config):
        pytest.skip(f"transformers {transformers.__version__} has no {config}")
    made = getattr(transformers, config)(**fields)
    model = (getattr(transformers, kind)(made) if isinstance(kind, str) else kind.from_config(made)).eval()
    randomize(model)
    return model


def wrap(model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, FocusConfig(chunk_size=8, local_size=8, prompt_size=4)).eval()


def read(model: PeftModel) -> torch.Tensor:
    return model.generate(random_ids(30)[None], max_new_tokens=2)


# Refused when wrapped


def test_a_state_space_model_has_no_attention() -> None:
    model = make(AutoModelForCausalLM, "MambaConfig", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    with refusal("MambaForCausalLM", "no attention"):
        wrap(model)


def test_a_layer_of_linear_attention_keeps_no_keys() -> None:
    model = make(
        AutoModelForCausalLM,
        "Qwen3NextConfig",
        **GROUPED,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    with refusal("Qwen3NextForCausalLM", "linear_attention"):
        wrap(model)


def test_a_layer_of_convolutions_keeps_no_keys() -> None:
    model = make(AutoModelForCausalLM, "Lfm2Config", **GROUPED, layer_types=["conv", "full_attention"])
    with refusal("Lfm2ForCausalLM", "'conv'"):
        wrap(model)


def test_chunked_attention_has_borders_of_its_own() -> None:
    model = make(
        AutoModelForCausalLM,
        "Llama4TextConfig",
        **GROUPED,
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=2,
        attention_chunk_size=8,
    )
    with refusal("Llama4ForCausalLM", "chunked_attention"):
        wrap(model)


def test_an_encoder_decoder_model_reads_with_its_encoder() -> None:
    model = make(
        AutoModelForSeq2SeqLM,
        "T5Config",
        vocab_size=VOCABULARY,
        d_model=32,
        d_ff=48,
        num_layers=1,
        num_heads=4,
        d_kv=8,
    )
    with refusal("T5ForConditionalGeneration", "encoder-decoder"):
        wrap(model)


def test_an_encoder_has_no_head_that_predicts_the_next_token() -> None:
    model = make(AutoModelForMaskedLM, "BertConfig", **PLAIN)
    with refusal("BertForMaskedLM", "no language-model head"):
        wrap(model)


def test_a_model_without_its_head_is_refused() -> None:
    with refusal("LlamaModel", "no language-model head", "`AutoModelForCausalLM`"):
        wrap(make("LlamaModel", "LlamaConfig", **GROUPED))


MULTIMODAL = {
    "Qwen2VLForConditionalGeneration": (
        "Qwen2VLConfig",
        {"text_config": GROUPED, "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}},
    ),
    "LlavaForConditionalGeneration": (
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **GROUPED},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
        },
    ),
    "Gemma3ForConditionalGeneration": (
        "Gemma3Config",
        {"text_config": {**GROUPED, "head_dim": 8}, "vision_config": VISION},
    ),
    "Mistral3ForConditionalGeneration": (
        "Mistral3Config",
        {"text_config": {"model_type": "mistral", **GROUPED}, "vision_config": {"model_type": "pixtral", **VISION}},
    ),
}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_vision_language_model_is_to_be_replaced_by_its_text_model(name: str) -> None:
    config, fields = MULTIMODAL[name]
    with refusal(name, "multimodal", "text model alone", "`AutoModelForCausalLM`"):
        wrap(make(name, config, **fields))


# Refused at the first use


def test_masks_that_a_model_makes_by_itself_are_noticed() -> None:
    # it hides keys by their place in the cache, whatever the mask says
    model = make(
        AutoModelForCausalLM,
        "GPTNeoConfig",
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=128,
    )
    wrapped = wrap(model)
    with refusal("GPTNeoForCausalLM", "cannot be read in chunks", "differ"):
        read(wrapped)


def test_positions_that_cannot_be_shifted_are_noticed() -> None:
    # sinusoidal positions come from a table that has no negative ones
    model = make(
        AutoModelForCausalLM,
        "XGLMConfig",
        vocab_size=VOCABULARY,
        d_model=32,
        ffn_dim=48,
        num_layers=2,
        attention_heads=4,
        max_position_embeddings=128,
    )
    wrapped = wrap(model)
    with refusal("XGLMForCausalLM", "cannot be read in chunks"):
        read(wrapped)


def test_norms_behind_the_rotation_are_noticed() -> None:
    # a weight for each feature, put on keys that are rotated already: differences of positions are not all that counts
    model = make(AutoModelForCausalLM, "HunYuanDenseV1Config", **GROUPED, head_dim=8)
    wrapped = wrap(model)
    with refusal("HunYuanDenseV1ForCausalLM", "cannot be read in chunks", "differ"):
        read(wrapped)


def test_an_encoder_with_a_language_model_head_reads_in_both_directions() -> None:
    wrapped = wrap(make("BertLMHeadModel", "BertConfig", **PLAIN, is_decoder=False))
    with refusal("BertLMHeadModel", "cannot be read in chunks"):
        read(wrapped)
