"""How `generate` sees the memory: transformers' own loops run, and each forward call they make becomes the two
passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ..frozen.compat import CACHE, rename
from ..memory.memory import Memory
from ..passes.chunking import pad_left
from ..passes.ids import check_batch, check_vocabulary, has_hole, unpad
from ..passes.reader import Reader
from ..passes.settings import Settings
from .cache_type import cache_type
from .forward import counts_tokens
from .loop_cache import LoopCache
from .options import (
    check_room,
    count_new_tokens,
    fix_new_tokens,
    mask_of_padding,
    options_of,
    refusal_of,
    refuse_changes,
    unset_own,
)
from .reading_cache import ReadingCache
from .reminder import unreminded
from .stream import rows_per_document


@dataclass
class _Request:
    """What is given to `generate`, checked.

    Attributes:
        ids (`torch.LongTensor` of shape (rows, tokens)): The input.
        given (`dict[str, Any]`): Mask and positions as they were given, for the base model.
        mask (`torch.Tensor` of shape (rows, tokens), *optional*): 1 at real tokens. None: all are.
        config (`Any`): The options that transformers will see.
        new_tokens (`int`): How many tokens may be generated.
    """

    ids: torch.Tensor
    given: dict[str, Any]
    mask: torch.Tensor | None
    config: Any
    new_tokens: int

    @classmethod
    def of(cls, settings: Settings, model: PreTrainedModel, inputs: Any, kwargs: dict[str, Any]) -> _Request:
        """Take the input out of `kwargs`, and check it."""
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if ids is None:
            raise ValueError("`input_ids` is missing; `inputs_embeds` alone cannot be split into chunks.")
        if isinstance(ids, (list, tuple, np.ndarray)):
            ids = torch.as_tensor(ids)
        mask, positions = kwargs.pop("attention_mask", None), kwargs.get("position_ids")
        given = {"attention_mask": mask, "position_ids": positions}
        check_batch(ids, mask)
        config = options_of(model, kwargs)
        if mask is None and not config.is_assistant:  # what an assistant goes on from may end with any token
            mask = mask_of_padding(ids, config)
        if counts_tokens(positions, ids, mask):  # as the loops count them, too
            del kwargs["position_ids"]
        new_tokens = count_new_tokens(kwargs, config, ids.shape[1], settings.sizes.local)
        return cls(ids, {name: v for name, v in given.items() if v is not None}, mask, config, new_tokens)

    @cached_property
    def rows(self) -> list[list[int]]:
        """The real tokens. A mask with a hole is refused."""
        return unpad(self.ids, self.mask)

    @property
    def has_hole(self) -> bool:
        """Whether the base model would hide tokens between others."""
        if "attention_mask" in self.given:
            return has_hole(self.mask)
        pad = self.config.pad_token_id
        return self.mask is not None and has_hole(self.ids != pad)  # those inside are hidden like those at the ends

    def fits(self, settings: Settings) -> bool:
        """Whether the local window holds everything, to the end."""
        longest = self.ids.shape[1] if self.has_hole else max(map(len, self.rows))
        return longest <= settings.sizes.local and longest + self.new_tokens < settings.window_limit(0)

    def on_the_left(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, as wide as they are, with all padding on the left: the loops append on the right."""
        ids, mask = self.ids, self.mask
        padded = mask is not None and not bool(mask[:, -1].all())
        if padded:
            pad = getattr(self.config, "pad_token_id", None)
            ids = pad_left(self.rows, 0 if pad is None else pad, ids.shape[1]).to(ids.device)
        if padded or mask is None:
            mask = pad_left([[1] * len(row) for row in self.rows], 0, ids.shape[1]).to(ids.device)
        return ids, mask


def generate(
    reader: Reader,
    settings: Settings,
    inputs: torch.Tensor | None,
    memory: Memory | None,
    progress: bool,
    overridden: list[str],
    kwargs: dict[str, Any],
) -> Any:
    """Run transformers' `generate` with a cache that owns the memory. See `FocusModel.generate`."""
    rename(kwargs)
    model = reader.model
    model_generate = cast(Callable[..., Any], model.generate)
    request = _Request.of(settings, model, inputs, kwargs)
    config, cache = request.config, kwargs.get(CACHE)
    refused = refusal_of(config, kwargs, settings.sizes.local)
    # whoever gets the cache may go on from it, past the end of the window
    goes_on = bool(config.return_dict_in_generate) and not refused
    is_base = memory is None and not isinstance(cache, LoopCache) and request.fits(settings)
    if is_base and (cache is not None or not goes_on or request.has_hole):
        check_vocabulary(request.ids.tolist(), settings.facts.vocab_size)
        return model_generate(request.ids, **{**kwargs, **request.given})
    if refused:
        raise ValueError(refused)
    check_vocabulary(request.rows, settings.facts.vocab_size)
    if type(cache) is DynamicCache and cache.get_seq_length() < request.ids.shape[1]:
        cache = None  # `input_ids` has all that it holds, and chunks are read from the start
    drafts = kwargs.get("assistant_model") is not None or bool(getattr(config, "prompt_lookup_num_tokens", None))
    if cache is None:
        cache = _new_cache(request, reader, settings, memory, progress)
        if isinstance(cache, ReadingCache):  # whether the window may spill
            cache.keeps_chunks = goes_on or drafts or request.new_tokens > settings.sizes.chunk
    else:
        _check_goes_on(cache, request, memory, overridden)
        # the loops cut off as many columns as were read, and this turn may be padded in another way
        cache.tokens = request.ids.shape[1] - (len(request.rows[0]) - len(cache.streams[0].ids))
    cache.may_crop |= drafts  # which older transformers take back without announcing it
    unset_own(kwargs, config)
    fix_new_tokens(kwargs, config, request.new_tokens)
    kwargs[CACHE] = cache
    kwargs["use_cache"] = True  # which some models (MPT) have off
    ids, mask = request.on_the_left()
    read = cache.tokens
    # the lock for all of it: a memory has room for the prompts of one request
    with cache.memory_lock(), unreminded():
        output = model_generate(ids, attention_mask=mask, **kwargs)
    if cache.tokens == read:  # a model may drop it in `prepare_inputs_for_generation`
        raise RuntimeError(
            f"{type(model).__name__} was called by `generate` without the cache that holds the memory (`{CACHE}`), "
            "and read the input without it; this way of generating is not supported."
        )
    return output


def _new_cache(
    request: _Request, reader: Reader, settings: Settings, memory: Memory | None, progress: bool
) -> LoopCache:
    rows = request.rows
    documents = len(rows) if memory is None else memory.num_documents
    rows_per_document(len(rows), documents)  # before beams multiply the rows
    check_room(settings, rows, memory, request.new_tokens)
    return cache_type(settings)(reader, settings, documents, memory, progress)


def _check_goes_on(cache: Any, request: _Request, memory: Memory | None, overridden: list[str]) -> None:
    """Raise a ValueError unless a request goes on from the given cache."""
    if not isinstance(cache, LoopCache):
        raise ValueError(
            f"`{CACHE}` is a {type(cache).__name__}, which holds no chunks; leave it out, or give back the `{CACHE}` "
            "that `generate` returned."
        )
    refuse_changes(memory, overridden)
    cache.check_continued_by(request.rows)
    for row, stream in zip(request.rows, cache.streams):
        new = len(row) - len(stream.ids) + request.new_tokens
        cache.settings.check_room(len(stream.rows), new, stream.window_length)
