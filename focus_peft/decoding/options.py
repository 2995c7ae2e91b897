"""The options of `generate`: what they are for this call, and which of them cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..frozen.compat import CACHE
from ..memory.memory import Memory
from ..passes.settings import Settings


# Options that say which cache transformers makes and how it is filled
OF_CACHES = ("cache_implementation", "prefill_chunk_size")


def options_of(model: PreTrainedModel, kwargs: dict[str, Any]) -> Any:
    """What transformers will see: the given or the model's generation config, with options on top. Only read, never
    passed.
    """
    given = kwargs.get("generation_config") or model.generation_config
    options = {key: value for key, value in kwargs.items() if value is not None}
    return _Layered(options, given, model.generation_config)


class _Layered:
    """Attributes of the first of several sources that has a value."""

    def __init__(self, options: dict[str, Any], *configs: Any) -> None:
        self._options, self._configs = options, configs
        self.own = configs[-1]

    def __getattr__(self, name: str) -> Any:
        if name in self._options:
            return self._options[name]
        return next((v for c in self._configs if (v := getattr(c, name, None)) is not None), None)


def mask_of_padding(input_ids: torch.Tensor, config: Any) -> torch.Tensor | None:
    """As in transformers: where no mask is given, the pad token marks padding, unless it is an end of sequence too.

    Only at the ends of a row, though; inside, it is text.
    """
    pad, eos = config.pad_token_id, config.eos_token_id
    ends = eos if isinstance(eos, (list, tuple)) else [eos]
    if pad is None or pad in ends or input_ids.dim() != 2 or not bool((input_ids == pad).any()):
        return None
    text = input_ids != pad
    return (text.cumsum(1).bool() & text.flip(1).cumsum(1).bool().flip(1)).long()


def count_new_tokens(kwargs: dict[str, Any], config: Any, length: int, local: int) -> int:
    """How many tokens may be generated behind an input.

    A `max_length` of the model's own generation config (Llama 2's: 4096) is the base model's window. Of a longer input
    it counts what the local window of `local` tokens holds.
    """
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    if config.max_length is not None:
        own = not _gives(kwargs, config, "max_length")
        return max(0, int(config.max_length) - (min(length, local) if own else length))
    return 20  # transformers' default


def fix_new_tokens(kwargs: dict[str, Any], config: Any, count: int) -> None:
    """Say how many tokens are generated, where the call does not: transformers would look at the length of the whole
    input, and at the positions of the model."""
    if config.max_new_tokens is None and not _gives(kwargs, config, "max_length") and count:
        kwargs["max_new_tokens"], kwargs["max_length"] = count, None


def refusal_of(config: Any, kwargs: dict[str, Any], local: int) -> str | None:
    """Why the options cannot work with chunks and a local window of `local` tokens, if they cannot."""
    negative = kwargs.get("negative_prompt_ids")
    if isinstance(negative, torch.Tensor) and negative.shape[-1] > local:  # transformers asks the base model for it
        return (
            f"`negative_prompt_ids` has {negative.shape[-1]} tokens, but `guidance_scale` reads it without the "
            f"adapter, so it must fit the local window of {local}; shorten it."
        )
    if kwargs.get("inputs_embeds") is not None:
        return "`inputs_embeds` cannot be split into chunks; give `input_ids`."
    if kwargs.get("position_ids") is not None:  # those that only count tokens have been taken out
        return "`position_ids` cannot be given, because every chunk has positions of its own; leave it out."
    if kwargs.get("use_cache") is False or getattr(kwargs.get("generation_config"), "use_cache", None) is False:
        return "`use_cache=False` would read the whole memory again for every token; leave it out."
    if config.token_healing:
        return "`token_healing=True` would ask the base model alone what the last token should be; leave it out."
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name):
            return f"`{name}=True` is not possible: chunk pass and local pass have different shapes; leave it out."
    for name in OF_CACHES:
        if _gives(kwargs, config, name) and not config.is_assistant:
            return f"`{name}` is {getattr(config, name)!r}, but focus_peft brings a cache of its own; leave it out."
    return None


def _gives(kwargs: dict[str, Any], config: Any, name: str) -> bool:
    """Whether a call has an option: by itself, or in a generation config that has another than the model's own, of
    which it may be a copy.
    """
    given = getattr(kwargs.get("generation_config"), name, None)
    return kwargs.get(name) is not None or given is not None and given != getattr(config.own, name, None)


def unset_own(kwargs: dict[str, Any], config: Any) -> None:
    """Leave out what the model's own generation config says of caches (Gemma's: "hybrid"), and assisted decoding in
    transformers 5.0 of its assistant's ("dynamic_full"): there is another.
    """
    for name in OF_CACHES:
        if getattr(config.own, name, None) is not None or config.is_assistant:
            kwargs[name] = None


def refuse_changes(memory: Memory | None, overridden: Sequence[str]) -> None:
    """Raise a ValueError for what cannot change while a cache goes on with what was read."""
    named = ", ".join(f"`{name}`" for name in [*(["memory"] if memory is not None else []), *overridden])
    if named:
        raise ValueError(f"{named} cannot be changed while `{CACHE}` continues what was read; leave it out.")


def check_room(settings: Settings, rows: list[list[int]], memory: Memory | None, new_tokens: int) -> None:
    """Raise a ValueError if what is read, and is still to be written, leaves the positions of the model."""
    held = 0 if memory is None else max(memory.chunks_of(document) for document in range(memory.num_documents))
    longest = max(map(len, rows))
    settings.check_room(held + settings.chunks_of(longest), new_tokens, min(longest, settings.sizes.local))
