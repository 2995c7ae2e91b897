"""Models as users load them: with the generation config, the type and the tokenizer's special tokens that their family
has on the Hub. The ids are those of the tiny vocabulary; which of them there are, and how they are given, is the
family's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BOS, EOS, PAD, make_tiny_model, perturb_twins, random_ids, small_config
from families import FAMILIES, IS_OLD, OLD
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, PreTrainedModel, StaticCache

from focus_peft.frozen.compat import CACHE


LONG, SHORT = random_ids(40, seed=3)[None], random_ids(5, seed=4)[None]

ENDS = {"bos_token_id": BOS, "eos_token_id": EOS}
ONE = {"bos_token_id": EOS, "eos_token_id": EOS}  # one token for both, and none for padding
PADDED = {**ENDS, "pad_token_id": PAD}
SEVERAL = {"bos_token_id": BOS, "eos_token_id": [EOS, 3], "pad_token_id": EOS}
SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
QWEN = {**SEVERAL, **SAMPLED, "top_k": 20}
LLAMA = {**PADDED, **SAMPLED, "top_p": 0.9, "max_length": 30}  # Llama 2's: 4,096, its window
GEMMA = {**PADDED, "cache_implementation": "hybrid"}

GENERATION: Mapping[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": {**QWEN, "repetition_penalty": 1.05},
    "qwen2_moe": {**QWEN, "repetition_penalty": 1.05},
    "qwen3": QWEN,
    "qwen3_moe": QWEN,
    "gemma": {**PADDED, "cache_implementation": "static"},
    "gemma2": GEMMA,
    "gemma3": {**GEMMA, **SAMPLED, "top_k": 64, "eos_token_id": [EOS, 3]},
    "gemma4": {**PADDED, **SAMPLED, "top_k": 64, "eos_token_id": [EOS, 3]},
    "smollm3": {**ENDS, **SAMPLED},
    "gpt_oss": {**SEVERAL, "do_sample": True},
    "phi3": SEVERAL,
    "glm4": {**SEVERAL, **SAMPLED},
    "glm4_moe": {**SEVERAL, **SAMPLED},
    "deepseek_v2": {**ENDS, **SAMPLED},
    "deepseek_v3": {**ENDS, **SAMPLED},
    "cohere": PADDED,
    "cohere2": PADDED,
    "opt": PADDED,
    "bloom": PADDED,
    "granite": {**ONE, "pad_token_id": EOS},
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gptj", "codegen", "gpt_neox", "falcon", "mpt", "stablelm", "phi"), ONE),
}
FLOAT32 = ("gpt2", "gptj", "codegen", "biogpt", "gpt_bigcode")  # all others are in 16 bits


def save(family: str, folder: Path, **generation: Any) -> None:
    """A tiny model as the Hub has it."""
    base = make_tiny_model(family, torch.float32)
    if family not in FLOAT32:
        base.to(torch.bfloat16)
    base.generation_config = GenerationConfig()
    base.save_pretrained(folder)
    named = GENERATION.get(family, ENDS) | generation
    (folder / "generation_config.json").write_text(json.dumps({**named, "transformers_version": "4.41.0"}))


def wrapped(base: PreTrainedModel, **fields: Any) -> PeftModel:
    model = get_peft_model(base, small_config(chunk_size=5, local_size=8, r=2, **fields)).eval()
    perturb_twins(model)
    return model


def drawn(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    torch.manual_seed(1)
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


@pytest.mark.parametrize("family", [name for name in FAMILIES if not (IS_OLD and name in {f for f, _ in OLD})])
def test_a_family_generates_as_its_generation_config_says(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert base.dtype == (torch.float32 if family in FLOAT32 else torch.bfloat16)
    alone = copy.deepcopy(base)
    model = wrapped(base)
    # nothing is given but the number of tokens: what is sampled, and where it ends, the configuration says
    found = drawn(model, LONG, max_new_tokens=4)
    named = GENERATION.get(family, ENDS)
    said = {name: value for name, value in named.items() if name not in ("cache_implementation", "max_length")}
    base.generation_config = GenerationConfig()
    assert torch.equal(found, drawn(model, LONG, max_new_tokens=4, **said))
    assert found.shape[1] > LONG.shape[1]
    base.generation_config = alone.generation_config
    assert torch.equal(drawn(model, SHORT, max_new_tokens=3), drawn(alone, SHORT, max_new_tokens=3))
    assert torch.equal(drawn(model, SHORT, max_length=8), drawn(alone, SHORT, max_length=8))
    for given in ("dynamic", "static") if "cache_implementation" in named else ():
        with pytest.raises(ValueError, match="`cache_implementation` is"):
            drawn(model, LONG, max_new_tokens=4, cache_implementation=given)


# How many tokens there are where nobody says it


@pytest.fixture
def llama(tmp_path: Path) -> PeftModel:
    save("llama", tmp_path, eos_token_id=None, do_sample=False, temperature=None, top_p=None)
    return wrapped(AutoModelForCausalLM.from_pretrained(tmp_path))


def test_the_length_of_a_models_own_configuration_counts_the_window_alone(llama: PeftModel) -> None:
    assert llama.generation_config.max_length == 30
    assert drawn(llama, SHORT).shape == (1, 30), "as the base model's"
    for length in (8, 9, 29, 30, 40):  # a longer input does not get fewer tokens than one that fills the window
        ids = random_ids(length, seed=length)[None]
        output = drawn(llama, ids)
        assert output.shape == (1, length + 22)
        assert torch.equal(output, drawn(llama, ids, max_new_tokens=22))
    # a copy of the configuration is the model's own still
    assert drawn(llama, LONG, generation_config=copy.deepcopy(llama.generation_config)).shape == (1, 62)
    memory = llama.encode(LONG)
    assert drawn(llama, SHORT, memory=memory).shape == (1, 30)


def test_a_length_that_is_given_is_the_users(llama: PeftModel) -> None:
    assert drawn(llama, LONG, max_length=45).shape == (1, 45)
    assert drawn(llama, LONG, generation_config=GenerationConfig(max_length=45, do_sample=False)).shape == (1, 45)
    for given in ({"max_length": 35}, {"generation_config": GenerationConfig(max_length=35)}):
        with pytest.raises(ValueError, match="`max_length` is set to 35"):
            drawn(llama, LONG, **given)


def test_an_input_past_the_positions_of_the_model_is_continued_by_twenty_tokens() -> None:
    model = wrapped(make_tiny_model(max_position_embeddings=64))
    ids = random_ids(150)[None]
    assert torch.equal(drawn(model, ids), drawn(model, ids, max_new_tokens=20))


# What the base model would read alone


@pytest.fixture
def model() -> PeftModel:
    return wrapped(make_tiny_model())


def test_pad_tokens_inside_a_short_text_are_hidden_as_by_the_base_model(model: PeftModel) -> None:
    base = model.get_base_model()
    ids = torch.cat([SHORT[:, :2], torch.zeros(1, 2, dtype=torch.long), SHORT[:, 2:4]], dim=1)
    for options in ({}, {"return_dict_in_generate": True}):
        for given in (ids, torch.cat([torch.zeros(1, 1, dtype=torch.long), ids], dim=1)):
            found = model.generate(given, max_new_tokens=2, do_sample=False, **options)
            with model.disable_adapter():
                expected = base.generate(given, max_new_tokens=2, do_sample=False, **options)
            found, expected = (out.sequences if options else out for out in (found, expected))
            assert torch.equal(found, expected)


def test_a_hole_in_the_mask_of_a_short_text_is_the_base_models(model: PeftModel) -> None:
    base, mask = make_tiny_model().requires_grad_(False), torch.tensor([[1, 1, 0, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    found, expected = (one.generate(SHORT, output_logits=True, **options) for one in (model, base))
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(torch.stack(found.logits), torch.stack(expected.logits))
    for use_cache in (None, True):
        with torch.no_grad():
            assert torch.equal(
                model(SHORT, attention_mask=mask, use_cache=use_cache).logits, base(SHORT, attention_mask=mask).logits
            )


def test_positions_that_are_given_with_a_short_text_are_the_base_models(model: PeftModel) -> None:
    base, positions = make_tiny_model().requires_grad_(False), torch.arange(5)[None] + 3
    with torch.no_grad():
        assert torch.equal(model(SHORT, position_ids=positions).logits, base(SHORT, position_ids=positions).logits)
    given = {"position_ids": positions, "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(SHORT, **given), base.generate(SHORT, **given))


# The recipe of transformers for chats: one cache, and the whole conversation in every turn


def test_a_chat_with_a_cache_of_transformers_goes_on_past_the_window(model: PeftModel) -> None:
    base = make_tiny_model().requires_grad_(False)
    cache, plain = DynamicCache(config=base.config), DynamicCache(config=base.config)
    turn, options = SHORT[:, :3], {"max_new_tokens": 2, "do_sample": False}
    reply = model.generate(turn, **{CACHE: cache}, **options)
    assert torch.equal(reply, base.generate(turn, **{CACHE: plain}, **options))
    assert cache.get_seq_length() == plain.get_seq_length() == 4, "their cache, as if the adapter were not there"
    for number in range(3):
        turn = torch.cat([reply, random_ids(6, seed=number)[None]], dim=1)
        reply = model.generate(turn, **{CACHE: cache}, **options)
        assert torch.equal(reply, model.generate(turn, **options))
    fresh = DynamicCache(config=base.config)
    assert torch.equal(model.generate(LONG, **{CACHE: fresh}, **options), model.generate(LONG, **options))
    memory = model.encode(LONG)
    found = model.generate(SHORT, memory=memory, **{CACHE: DynamicCache(config=base.config)}, **options)
    assert torch.equal(found, model.generate(SHORT, memory=memory, **options))


def test_caches_that_say_more_are_refused_where_chunks_are_needed(model: PeftModel) -> None:
    base = model.get_base_model()
    static = StaticCache(config=base.config, max_cache_len=64)
    with pytest.raises(ValueError, match="StaticCache, which holds no chunks"):
        model.generate(LONG, max_new_tokens=2, **{CACHE: static})
    ahead = DynamicCache(config=base.config)
    with model.disable_adapter():
        base(LONG, **{CACHE: ahead})
    with pytest.raises(ValueError, match="DynamicCache, which holds no chunks"):
        model.generate(LONG[:, :20], max_new_tokens=2, **{CACHE: ahead})
