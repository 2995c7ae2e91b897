"""How `generate` sees the memory: transformers' own loops run, and each forward call they make becomes the two passes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .cache_name import CACHE, rename
from .chunking import check_ids, check_vocabulary, pad_left, unpad
from .decoding import FocusCache
from .memory import Memory
from .reader import Reader
from .settings import Settings
from .slab import GraphCache, PassCache
from .support import ModelFacts


def generate(
    reader: Reader,
    settings: Settings,
    facts: ModelFacts,
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
    config = _generation_config(model, kwargs)
    if attention_mask is None:
        attention_mask = _mask_of_padding(input_ids, config)
    rows = unpad(input_ids, attention_mask)
    check_vocabulary(rows, facts.vocab_size)
    longest = max(map(len, rows))
    new_tokens = _new_tokens(config, input_ids.shape[1])

    cache = kwargs.get(CACHE)
    spills = longest > settings.sizes.local or longest + new_tokens >= settings.sizes.local + settings.sizes.chunk
    # whoever gets the cache may go on from it, past the end of the window
    goes_on = bool(config.return_dict_in_generate) and not _refused(config, kwargs)
    if cache is None and memory is None and not spills and not goes_on:  # the window holds everything, to the end
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        return model_generate(input_ids, **mask, **kwargs)
    refused = _refused(config, kwargs)
    if refused:
        raise ValueError(refused)
    if cache is None:
        documents = len(rows) if memory is None else memory.num_documents
        if len(rows) % documents:
            raise ValueError(
                f"`input_ids` has {len(rows)} rows, which is no multiple of the {documents} documents in `memory`."
            )
        check_room(settings, facts, rows, memory, new_tokens)
        cache = FocusCache(reader, settings, documents, memory, progress)
    elif not isinstance(cache, FocusCache):
        raise ValueError(
            f"`{CACHE}` is a {type(cache).__name__}, which holds no chunks; leave it out, or give back the `{CACHE}` that `generate` "
            "returned."
        )
    elif memory is not None or overridden:
        named = ", ".join(f"`{name}`" for name in (["memory"] if memory is not None else []) + overridden)
        raise ValueError(f"{named} cannot be changed while `{CACHE}` continues what was read; leave it out.")
    else:
        cache.check_continued_by(rows)

    padded = attention_mask is not None and not bool(attention_mask[:, -1].all())
    if padded:  # the loops append on the right, so padding belongs on the left
        pad = getattr(config, "pad_token_id", None)
        input_ids = pad_left(rows, 0 if pad is None else pad).to(input_ids.device)
    if padded or attention_mask is None:
        attention_mask = pad_left([[1] * len(row) for row in rows]).to(input_ids.device)
    if kwargs.get("assistant_model") is not None or getattr(config, "prompt_lookup_num_tokens", None):
        cache.may_crop = True  # drafts are taken back, which older transformers do without announcing it
    kwargs[CACHE] = cache
    kwargs["use_cache"] = True  # which some models (MPT) have off
    with _reads_through_cache(model):
        return model_generate(input_ids, attention_mask=attention_mask, **kwargs)


@contextlib.contextmanager
def _reads_through_cache(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, forward calls read through the `FocusCache` that they are given."""
    previous = model.__dict__.get("forward")
    original = model.forward

    @torch.compiler.disable  # a compiled model would be traced into our bookkeeping
    @functools.wraps(original)  # the loops look at the signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get(CACHE)
        if isinstance(cache, (PassCache, GraphCache)):  # one of the passes that our own cache runs
            return original(*args, **kwargs)
        if not isinstance(cache, FocusCache):  # a model may drop it in `prepare_inputs_for_generation`
            raise RuntimeError(
                f"{type(model).__name__} was called by `generate` without the cache that holds the memory (`{CACHE}` is a "
                f"{type(cache).__name__}), and would have read the input without it; this way of generating is not supported."
            )
        input_ids: torch.Tensor = kwargs["input_ids"]
        mask = kwargs.get("attention_mask")
        new = unpad(input_ids, None if mask is None else mask[:, -input_ids.shape[1] :])

        def base_call(base_cache: Cache) -> Any:
            return original(*args, **{**kwargs, CACHE: base_cache})

        newest = int(kwargs.get("logits_to_keep") or 1)
        result = cache.read(new, newest, width=input_ids.shape[1], base_call=base_call)
        if isinstance(result, torch.Tensor):
            fields: dict[str, Any] = {"logits": result, CACHE: cache}
            return CausalLMOutputWithPast(**fields)
        result[CACHE] = cache
        return result

    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if previous is not None:  # a hook of somebody else's, such as accelerate's
            model.forward = previous


def _generation_config(model: PreTrainedModel, kwargs: dict[str, Any]) -> Any:
    """What transformers will see: the given or the model's generation config, with options on top. Only read, never passed."""
    given = kwargs.get("generation_config") or model.generation_config
    options = {key: value for key, value in kwargs.items() if value is not None}
    return _Layered(options, given, model.generation_config)


class _Layered:
    """Attributes of the first of several sources that has a value."""

    def __init__(self, options: dict[str, Any], *configs: Any) -> None:
        self._options, self._configs = options, configs

    def __getattr__(self, name: str) -> Any:
        if name in self._options:
            return self._options[name]
        return next((v for c in self._configs if (v := getattr(c, name, None)) is not None), None)


def _mask_of_padding(input_ids: torch.Tensor, config: Any) -> torch.Tensor | None:
    """As in transformers: where no mask is given, the pad token marks padding, unless it is an end of sequence too.

    Only at the ends of a row, though; inside, it is text.
    """
    pad, eos = config.pad_token_id, config.eos_token_id
    ends = eos if isinstance(eos, (list, tuple)) else [eos]
    if pad is None or pad in ends or input_ids.dim() != 2 or not bool((input_ids == pad).any()):
        return None
    text = input_ids != pad
    return (text.cumsum(1).bool() & text.flip(1).cumsum(1).bool().flip(1)).long()


def _new_tokens(config: Any, length: int) -> int:
    """How many tokens may be generated."""
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    if config.max_length is not None:
        return max(0, int(config.max_length) - length)
    return 20  # transformers' default


def _refused(config: Any, kwargs: dict[str, Any]) -> str | None:
    """Why the options cannot work with chunks, if they cannot."""
    if kwargs.get("inputs_embeds") is not None:
        return "`inputs_embeds` cannot be split into chunks; give `input_ids`."
    if kwargs.get("position_ids") is not None:
        return "`position_ids` cannot be given, because every chunk has positions of its own; leave it out."
    if kwargs.get("use_cache") is False or getattr(kwargs.get("generation_config"), "use_cache", None) is False:
        return "`use_cache=False` would read the whole memory again for every token; leave it out."
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name):
            return f"`{name}=True` is not possible: chunk pass and local pass have different shapes; leave it out."
    for name in ("cache_implementation", "prefill_chunk_size"):
        if getattr(config, name) is not None:
            return f"`{name}` is {getattr(config, name)!r}, but focus_peft brings a cache of its own; leave it out."
    return None


def check_room(
    settings: Settings, facts: ModelFacts, rows: list[list[int]], memory: Memory | None, new_tokens: int
) -> None:
    """Raise a ValueError if what is read, and is still to be written, leaves the positions of the model."""
    held = 0 if memory is None else max(memory.chunks_of(document) for document in range(memory.num_documents))
    beyond = max(0, max(map(len, rows)) + new_tokens - settings.sizes.local)
    chunks = held + -(-beyond // settings.sizes.chunk)
    settings.check_room(facts, chunks, new_tokens)
