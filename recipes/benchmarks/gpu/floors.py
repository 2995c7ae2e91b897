"""What a computation takes at least: its bytes over the rate of a copy, or its arithmetic over the rate of a product
of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..setting import heads_of
from .measuring import Rates
from .models import Sizes


@dataclass(frozen=True)
class Floor:
    """Bytes that must be read and arithmetic that must be done."""

    bytes: float
    flops: float

    def figures(self, rates: Rates, seconds: float) -> dict[str, float]:
        """The floor in seconds, beside what was measured."""
        of_bytes, of_flops = self.bytes / rates.bytes_per_second, self.flops / rates.flops_per_second
        floor = max(of_bytes, of_flops)
        return {
            "floor_seconds_of_bytes": float(f"{of_bytes:.4g}"),
            "floor_seconds_of_arithmetic": float(f"{of_flops:.4g}"),
            "times_the_floor": round(seconds / floor, 2),
        }


class Counts:
    """The sizes of a wrapped model that its floors are made of.

    Args:
        model (`PeftModel`): The model.
        sizes (`Sizes`): What it reads with.
    """

    def __init__(self, model: Any, sizes: Sizes) -> None:
        base = model.get_base_model()
        config = base.config
        head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
        twins = [parameter for name, parameter in model.named_parameters() if ".focus_" in name]
        table = 0 if head.weight is embedding.weight else embedding.weight.nbytes  # of which a token takes a row
        self.adapter_bytes = sum(parameter.nbytes for parameter in twins)
        self.weight_bytes = sum(parameter.nbytes for parameter in model.parameters()) - table - self.adapter_bytes
        self.head = head.weight.numel()
        frozen = [module for module in base.modules() if isinstance(module, nn.Linear) and module is not head]
        of_twins = {id(parameter) for parameter in twins}
        self.linear = sum(m.weight.numel() for m in frozen if id(m.weight) not in of_twins)
        heads, size = heads_of(config)
        self.width = config.num_attention_heads * size  # of all queries
        self.layers = config.num_hidden_layers
        item = base.get_input_embeddings().weight.element_size()
        self.states = 2 * self.layers * heads * size * item  # bytes of a token's keys and values
        self.sizes = sizes

    def chunks(self, tokens: int) -> int:
        return -(-(tokens - self.sizes.local) // self.sizes.chunk)

    def passed(self, tokens: float, heads: float, pairs: float) -> float:
        """Arithmetic of so many tokens, logits, and pairs of a query and a key."""
        return 2 * self.linear * tokens + 2 * self.head * heads + 4 * self.width * self.layers * pairs

    def reading(self, tokens: int) -> Floor:
        """Chunks, the prompt behind each, and the local window."""
        chunks, sizes = self.chunks(tokens), self.sizes
        prompt = sizes.prompt + 1
        pairs = chunks * (sizes.chunk**2 / 2 + prompt * sizes.chunk + prompt**2 / 2) + sizes.local**2 / 2
        return Floor(self.weight_bytes, self.passed(tokens + chunks * prompt, 1, pairs))

    def token(self, tokens: int, decoding: str, state_size: float = 1.0) -> Floor:
        """One token: two of each chunk, and one of the local window, or all of it. `state_size` is that of stored
        states, relative.
        """
        chunks, sizes = self.chunks(tokens), self.sizes
        row = sizes.chunk + sizes.prompt + 1
        local = sizes.local if decoding == "exact" else 1
        window = chunks + sizes.local
        read = self.states * (chunks * row * state_size + (0 if decoding == "exact" else window))
        pairs = 2 * chunks * row + local * (window if local == 1 else chunks + sizes.local / 2)
        return Floor(self.weight_bytes + self.adapter_bytes + read, self.passed(2 * chunks + local, 1, pairs))

    def full_reading(self, tokens: int) -> Floor:
        return Floor(self.weight_bytes, self.passed(tokens, 1, tokens**2 / 2))

    def full_token(self, tokens: int) -> Floor:
        return Floor(self.weight_bytes + self.states * tokens, self.passed(1, 1, tokens))
