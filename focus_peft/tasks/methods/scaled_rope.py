"""Full attention with rescaled rotary positions: position interpolation, NTK, YaRN."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch

from .full_attention import FullAttention


class ScaledRope(FullAttention):
    """Full attention beyond the model's window, with rotary positions scaled by transformers; within the window, the
    base model.

    Args:
        model (`PeftModel`): Its base model must have plain rotary positions.
        kind (`str`): "linear" (position interpolation), "dynamic" (NTK) or "yarn". The first and the last are scaled
            by how many times longer than the window the input is, answer included.
    """

    def __init__(self, model: Any, kind: str) -> None:
        super().__init__(model)
        rope = getattr(self.base.config, "rope_parameters", None) or {}
        if rope.get("rope_type") != "default" or not self._rotary():
            raise ValueError(
                f"`model` is a {type(self.base).__name__}, which has no plain rotary positions that could be scaled "
                f"({rope or 'no rope_parameters'}); leave out {kind!r}."
            )
        self.kind = kind

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        return None

    @contextlib.contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Within the context, the base model's positions are scaled for so many tokens."""
        if tokens <= self.facts.max_positions:
            yield
            return
        config = copy.deepcopy(self.base.config)
        config.rope_parameters = {**config.rope_parameters, **self.parameters(tokens)}
        replaced = [(parent, name, getattr(parent, name)) for parent, name in self._rotary()]
        try:
            for parent, name, module in replaced:
                setattr(parent, name, type(module)(config).to(module.inv_freq.device))
            yield
        finally:
            for parent, name, module in replaced:
                setattr(parent, name, module)

    def parameters(self, tokens: int) -> dict[str, Any]:
        """Transformers' `rope_parameters`."""
        if self.kind == "dynamic":  # grows with the input by itself
            return {"rope_type": "dynamic", "factor": 1.0}
        scaled = {"rope_type": self.kind, "factor": tokens / self.facts.max_positions}
        return scaled | ({"original_max_position_embeddings": self.facts.max_positions} if self.kind == "yarn" else {})

    def _rotary(self) -> list[tuple[torch.nn.Module, str]]:
        return [
            (parent, name)
            for parent in self.base.modules()
            for name, module in parent.named_children()
            if type(module).__name__.endswith("RotaryEmbedding")
        ]
