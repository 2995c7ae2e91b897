"""Calls that would run the base model past the adapter, without a word: `FocusModel` refuses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class PastTheAdapter:
    """A method of the base model that is refused, unless the adapter is disabled.

    Args:
        remedy (`str`): What to do instead.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tuner: Any, owner: type | None = None) -> Any:
        if tuner is None:
            return self
        return self._refusal if tuner.adapters_enabled else getattr(tuner.model, self.name)

    @property
    def _refusal(self) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise ValueError(
                f"`{self.name}` would run the base model without its focus adapter; {self.remedy}, or ask the base "
                "model on purpose: within `model.disable_adapter()`."
            )

        return refuse


class Refusals:
    """What transformers' models have, and a wrapped one has not."""

    generate_batch = PastTheAdapter("call `generate`, which takes a batch of inputs")
    init_continuous_batching = PastTheAdapter("call `generate`, which takes a batch of inputs")
    continuous_batching_context_manager = PastTheAdapter("call `generate`, which takes a batch of inputs")
    heal_tokens = PastTheAdapter("leave the last token of the input as it is")
    get_compiled_call = PastTheAdapter("call `torch.compile` on the base model before it is wrapped")
