"""How forward calls of the base model become the two passes: by the type of the cache that they are given."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..frozen.compat import CACHE, rename
from ..frozen.interception import Interceptor
from ..passes.ids import unpad
from .loop_cache import LoopCache


class CacheDispatch(Interceptor):
    """Stands before the base model's `forward`: a call with a cache of ours reads through it, every other is the base
    model's own.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rename(kwargs)
        if isinstance(kwargs.get(CACHE), LoopCache):
            return self._read(*args, **kwargs)
        return self.original(*args, **kwargs)

    @torch.compiler.disable  # a compiled model would be traced into our bookkeeping
    def _read(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        cache: LoopCache = kwargs[CACHE]
        if cache.reader.model is not self.module:
            raise ValueError(
                f"`{CACHE}` holds what another model read, and this one cannot go on from it; give the model that "
                f"made it, or leave `{CACHE}` out."
            )
        if input_ids is None:
            raise ValueError(f"`input_ids` is missing; `{CACHE}` goes on with ids, and not with `inputs_embeds`.")
        mask = kwargs.get("attention_mask")
        if cache.tokens and input_ids.shape[1] > 1:
            unread = _columns(mask, kwargs.get("position_ids")) - cache.tokens
            before, read = input_ids[0, :-unread].tolist() if unread > 0 else [], cache.streams[0].ids
            if before and before[-len(read) :] == read:
                # assisted decoding hands a second turn over with all that was read before (transformers 5.24)
                input_ids = input_ids[:, -unread:]
                if kwargs.get("position_ids") is not None:
                    kwargs["position_ids"] = kwargs["position_ids"][:, -unread:]
        columns = None if mask is None else mask[:, -input_ids.shape[1] :]
        new = unpad(input_ids, columns)

        def base_call(base_cache: Cache, base_mask: torch.Tensor) -> Any:
            where = _where(base_mask, input_ids.shape[1], kwargs, cache.reader.takes_positions)
            return self.original(input_ids=input_ids, **{**kwargs, **where, CACHE: base_cache})

        newest = min(int(kwargs.get("logits_to_keep") or 1), input_ids.shape[1])
        result = cache.read(new, newest, torch.ones_like(input_ids) if columns is None else columns, base_call)
        if isinstance(result, torch.Tensor):
            fields: dict[str, Any] = {"logits": result, CACHE: cache}
            return CausalLMOutputWithPast(**fields)
        result[CACHE] = cache
        return result


def _columns(mask: torch.Tensor | None, positions: torch.Tensor | None) -> int:
    """How many columns a batch has, those read before included, as its mask or (where there is none) its positions
    say; 0: neither does.
    """
    if mask is not None and mask.dim() == 2:
        return mask.shape[1]
    return 0 if positions is None or mask is not None else int(positions[0, -1]) + 1


def _where(base_mask: torch.Tensor, new: int, given: dict[str, Any], takes_positions: bool) -> dict[str, Any]:
    """What tells the base model where its new tokens stand: a conversation may have been padded in another way before,
    and a loop may not say it again.
    """
    found: dict[str, Any] = {}
    if given.get("cache_position") is not None:  # transformers 5.0 counts columns
        found["cache_position"] = given["cache_position"] + base_mask.shape[1] - 1 - given["cache_position"][-1]
    if bool(base_mask.all()):
        return {**found, **({} if given.get("attention_mask") is None else {"attention_mask": base_mask})}
    if takes_positions and given.get("position_ids") is None:
        found["position_ids"] = (base_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]
    return {**found, "attention_mask": base_mask}
