"""How `generate` sees the memory: transformers' own loops run, and each forward call they make becomes the two
passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from ..frozen.compat import CACHE, rename
from ..memory.memory import Memory
from ..passes.chunking import pad_left
from ..passes.ids import check_ids, check_vocabulary, unpad
from ..passes.reader import Reader
from ..passes.settings import Settings
from .forward import counts_tokens
from .loop_cache import LoopCache
from .options import check_room, count_new_tokens, mask_of_padding, options_of, refusal_of, refuse_changes, unset_own
from .reading_cache import ReadingCache, make_cache
from .reminder import unreminded


@dataclass
class _Request:
    """What is given to `generate`, checked.

    Attributes:
        ids (`torch.LongTensor` of shape (rows, tokens)): The input.
        mask (`torch.Tensor` of shape (rows, tokens), *optional*): 1 at real tokens. None: all are.
        rows (`list[list[int]]`): The real tokens.
        config (`Any`): The options that transformers will see.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    rows: list[list[int]]
    config: Any

    @classmethod
    def of(cls, settings: Settings, model: PreTrainedModel, inputs: Any, kwargs: dict[str, Any]) -> _Request:
        """Take the input out of `kwargs`, and check it."""
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if ids is None:
            raise ValueError("`input_ids` is missing; `inputs_embeds` alone cannot be split into chunks.")
        if isinstance(ids, (list, tuple, np.ndarray)):
            ids = torch.as_tensor(ids)
        check_ids(ids, "input_ids")
        mask = kwargs.pop("attention_mask", None)
        config = options_of(model, kwargs)
        if mask is None and not config.is_assistant:  # what an assistant goes on from may end with any token
            mask = mask_of_padding(ids, config)
        if counts_tokens(kwargs.get("position_ids"), ids, mask):  # as the loops count them, too
            del kwargs["position_ids"]
        rows = unpad(ids, mask)
        check_vocabulary(rows, settings.facts.vocab_size)
        return cls(ids, mask, rows, config)

    @property
    def new_tokens(self) -> int:
        return count_new_tokens(self.config, self.ids.shape[1])

    def fits(self, settings: Settings) -> bool:
        """Whether the local window holds everything, to the end."""
        longest = max(map(len, self.rows))
        return longest <= settings.sizes.local and longest + self.new_tokens < settings.window_limit(0)

    def on_the_left(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask with all padding on the left: the loops append on the right."""
        ids, mask = self.ids, self.mask
        padded = mask is not None and not bool(mask[:, -1].all())
        if padded:
            pad = getattr(self.config, "pad_token_id", None)
            ids = pad_left(self.rows, 0 if pad is None else pad).to(ids.device)
        if padded or mask is None:
            mask = pad_left([[1] * len(row) for row in self.rows]).to(ids.device)
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
    config, cache, refused = request.config, kwargs.get(CACHE), refusal_of(request.config, kwargs)
    # whoever gets the cache may go on from it, past the end of the window
    goes_on = bool(config.return_dict_in_generate) and not refused
    if cache is None and memory is None and request.fits(settings) and not goes_on:
        given = {} if request.mask is None else {"attention_mask": request.mask}
        return model_generate(request.ids, **given, **kwargs)
    if refused:
        raise ValueError(refused)
    drafts = kwargs.get("assistant_model") is not None or bool(getattr(config, "prompt_lookup_num_tokens", None))
    if cache is None:
        cache = _new_cache(request, reader, settings, memory, progress)
        if isinstance(cache, ReadingCache):  # whether the window may spill
            cache.keeps_chunks = goes_on or drafts or request.new_tokens > settings.sizes.chunk
    else:
        _check_goes_on(cache, request, memory, overridden)
    cache.may_crop |= drafts  # which older transformers take back without announcing it
    unset_own(kwargs, config)
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
    if len(rows) % documents:
        raise ValueError(
            f"`input_ids` has {len(rows)} rows, which is no multiple of the {documents} documents in `memory`."
        )
    check_room(settings, rows, memory, request.new_tokens)
    return make_cache(reader, settings, documents, memory, progress)


def _check_goes_on(cache: Any, request: _Request, memory: Memory | None, overridden: list[str]) -> None:
    """Raise a ValueError unless a request goes on from the given cache."""
    if not isinstance(cache, LoopCache):
        raise ValueError(
            f"`{CACHE}` is a {type(cache).__name__}, which holds no chunks; leave it out, or give back the `{CACHE}` "
            "that `generate` returned."
        )
    refuse_changes(memory, overridden)
    cache.check_continued_by(request.rows)
    new = (len(row) - len(stream.ids) for row, stream in zip(request.rows, cache.streams))
    cache.check_room([tokens + request.new_tokens for tokens in new])
