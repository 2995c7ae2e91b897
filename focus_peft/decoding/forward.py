"""What `FocusModel.forward` does without labels: whose business a call is, and calls that go on from a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..frozen.compat import CACHE
from ..layer import TwinLayer
from ..losses.output import OTHER_TRAINERS
from ..memory.memory import Memory
from ..passes.ids import check_vocabulary, unpad
from ..passes.reader import Reader
from ..passes.settings import Settings
from .cache_type import cache_type
from .loop_cache import LoopCache
from .options import check_room


# Arguments of a base model's forward that change nothing of what is computed here
HARMLESS = ("use_cache", "return_dict", "num_items_in_batch", "token_type_ids")
# These are read in pieces
OURS = ("input_ids", "attention_mask", "logits_to_keep")


class _NoGraph(torch.autograd.Function):
    """Logits of a model that is trained: where their graph would be, there is a sentence."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        raise ValueError(OTHER_TRAINERS)


def refuse_backward(output: Any, twins: Mapping[str, TwinLayer]) -> Any:
    """Let a loss that is computed from an output's logits fail with a sentence in its backward pass."""
    logits = getattr(output, "logits", None)
    if torch.is_grad_enabled() and logits is not None and not logits.requires_grad:
        weights = (weight for layer in twins.values() for twin in layer.twins_of() for weight in twin.parameters())
        trained = next((weight for weight in weights if weight.requires_grad), None)
        if trained is not None:
            output.logits = _NoGraph.apply(logits, trained)
    return output


def is_for_the_base_model(settings: Settings, input_ids: torch.Tensor | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call, without labels or memory, is the base model's alone: it reads no more than the local window.

    Raises:
        ValueError: for a cache of the base model that would grow past the local window, where nothing could become a
            chunk, and for embeddings that are longer.
    """
    cache, embeddings = kwargs.get(CACHE), kwargs.get("inputs_embeds")
    given = input_ids if input_ids is not None else embeddings
    if given is None:
        return True  # which says what is missing
    local = settings.sizes.local
    tokens = given.shape[1] if isinstance(given, torch.Tensor) and given.dim() > 1 else local + 1
    held = 0 if cache is None or not hasattr(cache, "get_seq_length") else int(cache.get_seq_length())
    if cache is not None and held + tokens > local:
        raise ValueError(
            f"`{CACHE}` is a {type(cache).__name__} of {held} tokens, which holds no chunks, and with {tokens} more "
            f"they would not fit the local window of {local}; leave it out and give `use_cache=True`, and go on with "
            "the cache that is returned."
        )
    if input_ids is None and tokens > local:
        raise ValueError(
            f"`inputs_embeds` has {tokens} tokens, more than the local window of {local}, and embeddings cannot be "
            "split into chunks; give `input_ids`."
        )
    return tokens <= local


def check_chunked(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, kwargs: Mapping[str, Any]) -> None:
    """Raise a ValueError for an argument that is not possible with chunks."""
    for name, value in kwargs.items():
        if name == "return_dict" and value is False:
            raise ValueError("`return_dict=False` is not possible with chunks; leave it out, and call `to_tuple()`.")
        if value is None or value is False or isinstance(value, LoopCache) or name in HARMLESS + OURS:
            continue
        if name == "position_ids" and counts_tokens(value, input_ids, attention_mask, kwargs.get(CACHE)):
            continue
        if name == "fused_lm_head":  # of TRL's trainers, from 1.16 on
            raise ValueError(OTHER_TRAINERS)
        raise ValueError(f"`{name}` is not possible with chunks, which are read in several passes; leave it out.")


def counts_tokens(
    positions: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, cache: LoopCache | None = None
) -> bool:
    """Whether positions say no more than the mask does: each real token's number in its row, of which the cache may
    hold the beginning.
    """
    if not isinstance(positions, torch.Tensor) or positions.shape[-1:] != input_ids.shape[-1:]:
        return False
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask[..., -input_ids.shape[-1] :]
    read = [0] if cache is None or not cache.streams else [len(stream.ids) for stream in cache.streams]
    counted = mask.cumsum(-1) - 1 + torch.tensor(read, device=mask.device)[:, None]
    return bool(((counted == positions) | ~mask.bool()).all())


def read_with_cache(reader: Reader, settings: Settings, memory: Memory | None, arguments: dict[str, Any]) -> Any:
    """Read an input, or go on from the cache among `arguments`, and give the cache back: for decoding loops of one's
    own.

    Args:
        reader, settings: What it is read with.
        memory (`Memory`, *optional*): What stands before the input.
        arguments (`dict[str, Any]`): Of the base model's forward.

    Returns:
        What the base model returns, with a cache of ours. Where chunks are involved, logits are those of the last
        token (or the last `logits_to_keep`), as in `generate`'s first step.
    """
    ids, mask, cache = arguments["input_ids"], arguments.get("attention_mask"), arguments.get(CACHE)
    if cache is not None and isinstance(mask, torch.Tensor) and mask.shape[1:] == (cache.tokens + ids.shape[1],):
        mask = mask[:, cache.tokens :]  # transformers' own form: what was read before is in it
    rows = unpad(ids, mask)
    if cache is None:
        check_vocabulary(rows, settings.facts.vocab_size)
        check_room(settings, rows, memory, 0)
        documents = len(rows) if memory is None else memory.num_documents
        arguments[CACHE] = cache_type(settings)(reader, settings, documents, memory)
    arguments["use_cache"] = True
    return reader.model(**{name: value for name, value in arguments.items() if value is not None})
