"""Tiny random models of every supported kind, built in code, for the tests and for machines without pytest."""

from __future__ import annotations

import copy
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from exact import make_exact
from families import FAMILIES, IS_OLD
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from focus_peft import FocusConfig


ROOT = Path(__file__).parents[1]
VOCABULARY = 120
PAD, BOS, EOS = 0, 1, 2


def make_tiny_model(family: str = "llama", dtype: torch.dtype = torch.float64, **overrides: Any) -> PreTrainedModel:
    """A model with random weights, the same at every call, large enough that attention is peaky.

    A float64 model computes in float64 all the way through (see `exact`), so that computations that are equal on paper
    are equal to about 1e-12 here. A family that the installed transformers does not have skips the test.

    Args:
        family (`str`): A key of `FAMILIES`.
        dtype (`torch.dtype`): Type of the weights.
        overrides: Fields of the model's configuration, or `seed`, or `weight_std`.
    """
    seed, weight_std = overrides.pop("seed", 0), overrides.pop("weight_std", 0.3)
    kind = FAMILIES[family]
    if kind.missing:
        raise unittest.SkipTest(kind.missing)
    defaults = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "bos_token_id": BOS,
        "eos_token_id": None,  # so that nothing stops early; a test that wants a stop names its token
        "pad_token_id": PAD,
        "attn_implementation": kind.attention[0],
        "tie_word_embeddings": False,  # tied random embeddings make every model repeat its last token
    }
    # copied, because Gemma4's configuration writes into the list of layer types that it is given
    fields = copy.deepcopy({**defaults, **kind.fields, **overrides})
    config = getattr(transformers, kind.config)(**fields)
    # torch has no grouped products of float64, which experts are computed with
    options = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for what is not drawn anew below
        model = AutoModelForCausalLM.from_config(config, **options).eval()
    never = 10**6 if IS_OLD else None  # older transformers look drafts up only for models that have such a token
    model.generation_config.eos_token_id = never if config.eos_token_id is None else config.eos_token_id
    randomize(model, seed, weight_std)
    model = model.to(dtype)
    if dtype == torch.float64:
        make_exact(model)
    return model


def randomize(model: nn.Module, seed: int = 0, weight_std: float = 0.3) -> None:
    """Seeded weights, large enough that attention is peaky and no part of a model can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() == 1:  # norms stay near their start, biases near 0
                parameter.add_((0.1 * noise).to(parameter.dtype))
            else:
                std = 1.0 if "emb" in name or "wte" in name or "wpe" in name else weight_std
                parameter.copy_((std * noise).to(parameter.dtype))


def perturb_twins(model: nn.Module, std: float = 0.1, seed: int = 1) -> None:
    """Add seeded noise to all twins of a wrapped model, so that they differ from the frozen projections."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "focus_" in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((std * noise).to(parameter.dtype))


def small_config(**fields: Any) -> FocusConfig:
    """A configuration with windows of a few tokens, unless `fields` say otherwise."""
    return FocusConfig(**{"chunk_size": 8, "local_size": 8, "prompt_size": 4, **fields})


def make_focus_model(
    family: str = "llama", dtype: torch.dtype = torch.float64, base: dict[str, Any] | None = None, **fields: Any
) -> PeftModel:
    """A tiny model with a focus adapter whose twins differ from the frozen projections.

    Args:
        family (`str`): A key of `FAMILIES`.
        dtype (`torch.dtype`): Type of the weights.
        base (`dict`, *optional*): Overrides for [`make_tiny_model`].
        fields: Fields of `FocusConfig`; small windows by default.
    """
    model = get_peft_model(make_tiny_model(family, dtype, **(base or {})), small_config(**fields))
    perturb_twins(model)
    return model.eval()


def random_ids(length: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Seeded ids of shape (length,), special tokens left out."""
    return torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(seed))


IDS = random_ids(40)[None]  # past the local window of `small_config`


def logits_of(model: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def pad_rows(rows: Sequence[torch.Tensor], side: str = "left", value: int = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as one batch: (input_ids, attention_mask), each of shape (rows, longest)."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[number, place], mask[number, place] = row, 1
    return ids, mask
