"""How `generate` sees the memory: transformers' own loops run, and each forward call they make becomes the two
passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

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
    input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
    if input_ids is None:
        raise ValueError("`input_ids` is missing; `inputs_embeds` alone cannot be split into chunks.")
    if isinstance(input_ids, (list, tuple, np.ndarray)):
        input_ids = torch.as_tensor(input_ids)
    check_ids(input_ids, "input_ids")
    attention_mask = kwargs.pop("attention_mask", None)
    config = options_of(model, kwargs)
    if attention_mask is None and not config.is_assistant:  # what an assistant goes on from may end with any token
        attention_mask = mask_of_padding(input_ids, config)
    if counts_tokens(kwargs.get("position_ids"), input_ids, attention_mask):  # as the loops count them, too
        del kwargs["position_ids"]
    rows = unpad(input_ids, attention_mask)
    check_vocabulary(rows, settings.facts.vocab_size)
    longest = max(map(len, rows))
    new_tokens = count_new_tokens(config, input_ids.shape[1])

    cache = kwargs.get(CACHE)
    spills = longest > settings.sizes.local or longest + new_tokens >= settings.window_limit(0)
    # whoever gets the cache may go on from it, past the end of the window
    goes_on = bool(config.return_dict_in_generate) and not refusal_of(config, kwargs)
    if cache is None and memory is None and not spills and not goes_on:  # the window holds everything, to the end
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        return model_generate(input_ids, **mask, **kwargs)
    refused = refusal_of(config, kwargs)
    if refused:
        raise ValueError(refused)
    if cache is None:
        documents = len(rows) if memory is None else memory.num_documents
        if len(rows) % documents:
            raise ValueError(
                f"`input_ids` has {len(rows)} rows, which is no multiple of the {documents} documents in `memory`."
            )
        check_room(settings, rows, memory, new_tokens)
        cache = make_cache(reader, settings, documents, memory, progress)
    elif not isinstance(cache, LoopCache):
        raise ValueError(
            f"`{CACHE}` is a {type(cache).__name__}, which holds no chunks; leave it out, or give back the `{CACHE}` "
            "that `generate` returned."
        )
    else:
        refuse_changes(memory, overridden)
        cache.check_continued_by(rows)
        cache.check_room([len(row) - len(stream.ids) + new_tokens for row, stream in zip(rows, cache.streams)])

    padded = attention_mask is not None and not bool(attention_mask[:, -1].all())
    if padded:  # the loops append on the right, so padding belongs on the left
        pad = getattr(config, "pad_token_id", None)
        input_ids = pad_left(rows, 0 if pad is None else pad).to(input_ids.device)
    if padded or attention_mask is None:
        attention_mask = pad_left([[1] * len(row) for row in rows]).to(input_ids.device)
    if kwargs.get("assistant_model") is not None or getattr(config, "prompt_lookup_num_tokens", None):
        cache.may_crop = True  # drafts are taken back, which older transformers do without announcing it
    if isinstance(cache, ReadingCache) and kwargs.get(CACHE) is None:  # whether the window may spill
        cache.keeps_chunks = goes_on or cache.may_crop or new_tokens > settings.sizes.chunk
    unset_own(kwargs, config)
    kwargs[CACHE] = cache
    kwargs["use_cache"] = True  # which some models (MPT) have off
    read = cache.tokens
    # the lock for all of it: a memory has room for the prompts of one request
    with cache.memory_lock(), unreminded():
        output = model_generate(input_ids, attention_mask=attention_mask, **kwargs)
    if cache.tokens == read:  # a model may drop it in `prepare_inputs_for_generation`
        raise RuntimeError(
            f"{type(model).__name__} was called by `generate` without the cache that holds the memory (`{CACHE}`), "
            "and read the input without it; this way of generating is not supported."
        )
    return output
