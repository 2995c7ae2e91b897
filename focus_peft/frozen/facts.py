"""Which models can be adapted: what their configuration and modules say, and a clear refusal where something does not
fit.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from .alibi import Alibi
from .attention import check_attention


# Where a configuration says nothing of its positions
DEFAULT_POSITIONS = 8192


# Rotary scaling whose frequencies change with length
CHANGING = ("dynamic", "longrope")
LEARNED_TABLES = ("wpe", "embed_positions", "position_embeddings")


@dataclass(frozen=True)
class ModelFacts:
    """What the method needs to know of a base model.

    Attributes:
        max_positions (`int`): Positions that the model was made for.
        learned_positions (`bool`): Whether they come from a table.
        rotary_table (`bool`): Whether rotary angles come from a table, which has none for negative positions.
        bounded (`bool`): Whether no position may pass `max_positions`: there is a table, or frequencies would change.
        bos (`int`, *optional*): The id of its BOS token.
        vocab_size (`int`): Rows of its embedding.
        sliding_window (`int`, *optional*): Tokens that a sliding-window layer sees.
        layer_types (`frozenset[str]`): "full_attention", "sliding_attention" or both.
    """

    max_positions: int
    learned_positions: bool
    rotary_table: bool
    bounded: bool
    bos: int | None
    vocab_size: int
    sliding_window: int | None
    layer_types: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module) -> ModelFacts:
        """Look at a model.

        Raises:
            ValueError: if it is no decoder-only model that can be read in chunks; the message says why.
        """
        if isinstance(getattr(model, "_orig_mod", None), PreTrainedModel):
            raise ValueError(
                "`model` is what `torch.compile(model)` returned, whose layers cannot be replaced; compile it in "
                "place with `model.compile()` instead."
            )
        if not isinstance(model, PreTrainedModel):
            raise ValueError(
                "`model` must be a transformers causal language model (`AutoModelForCausalLM`), got "
                f"{type(model).__name__}."
            )
        config = model.config
        name = type(model).__name__
        if config.is_encoder_decoder:
            raise ValueError(
                f"{name} is an encoder-decoder model; FocusLLM needs a decoder-only causal language model."
            )
        if config.get_text_config() is not config:
            raise ValueError(
                f"{name} wraps its text model in a multimodal one; load the text model alone (`AutoModelForCausalLM`)."
            )
        if not model.can_generate() or model.get_output_embeddings() is None:
            raise ValueError(f"{name} has no language-model head; load it with `AutoModelForCausalLM`.")
        learned = any(
            isinstance(module, nn.Embedding) and path.removesuffix(".base_layer").rpartition(".")[2] in LEARNED_TABLES
            for path, module in model.named_modules()
        )
        table = any(torch.is_tensor(getattr(module, "embed_positions", None)) for module in model.modules())
        accepted = inspect.signature(model.base_model.forward).parameters
        if "position_ids" not in accepted and Alibi.of(model) is None:
            raise ValueError(
                f"{name} takes no `position_ids`: it has no attention over positions, or counts its keys in a way of "
                "its own, so candidates cannot be placed before its local window."
            )
        check_attention(model)
        types, window = _layer_types(model)
        bos = config.bos_token_id
        return cls(
            max_positions=_max_positions(config),
            learned_positions=learned,
            rotary_table=table,
            bounded=learned or table or _rope(config).get("rope_type") in CHANGING,
            bos=bos[0] if isinstance(bos, (list, tuple)) else bos,
            vocab_size=embedding_count(model),
            sliding_window=window,
            layer_types=types,
        )


def embedding_count(model: PreTrainedModel) -> int:
    """Rows of a model's embedding, whichever adapter it carries."""
    embedding: Any = model.get_input_embeddings()
    if isinstance(embedding, BaseTunerLayer):
        embedding = embedding.get_base_layer()
    return int(embedding.num_embeddings)


def _max_positions(config: object) -> int:
    """Positions that rotary or learned embeddings were made for."""
    parameters = _rope(config)
    original = getattr(config, "original_max_position_embeddings", None)
    if parameters.get("rope_type") == "longrope":
        # past its original length, longrope changes every frequency, and cached keys would no longer fit
        original = original or parameters.get("original_max_position_embeddings")
        if original:
            return int(original)
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return DEFAULT_POSITIONS


def _rope(config: object) -> dict:
    """How rotary frequencies are scaled."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return {}
    for each in parameters.values():  # of each type of layer
        if isinstance(each, dict) and each.get("rope_type") in CHANGING:
            return each
    return parameters


def _layer_types(model: PreTrainedModel) -> tuple[frozenset[str], int | None]:
    """({"full_attention" and/or "sliding_attention"}, the sliding window)."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    # the second is what hybrids called it until transformers 5.2x, with "attention" for layers that see everything
    named = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    types = frozenset("full_attention" if name == "attention" else name for name in named)
    if not types:
        types = frozenset(["sliding_attention" if window else "full_attention"])
    foreign = sorted(types - {"full_attention", "sliding_attention"})
    if foreign:
        raise ValueError(
            f"{type(model).__name__} has layers of the types {foreign}; only layers that keep a key and a value for "
            "every token and see all of them, or a sliding window, can hand a candidate from a chunk to the local "
            "window."
        )
    return types, window
