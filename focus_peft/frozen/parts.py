"""The parts of a pass over rows of several stores.

The tokens of all parts stand side by side in one row, so that projections and MLPs read the weights once for all.
Only attention and twins tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Part:
    """Some rows of tokens in a pass whose tokens all stand in one row.

    Views are made by strides, in one step: a pass makes many, for each layer.

    Attributes:
        begin (`int`): Where the first token stands.
        rows (`int`): How many rows.
        tokens (`int`): Tokens of each row; the rows stand one after another.
        masks (`dict[str, torch.Tensor]`): For each type of layer, the additive mask (rows, 1, tokens, keys).
    """

    begin: int
    rows: int
    tokens: int
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    _shaped: dict[tuple[str, int, torch.device], torch.Tensor] = field(default_factory=dict)

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """(1, heads, all tokens, dim) -> a view (rows, heads, tokens, dim)."""
        _, head, token, number = states.stride()
        return states.as_strided(
            (self.rows, states.shape[1], self.tokens, states.shape[3]),
            (self.tokens * token, head, token, number),
            states.storage_offset() + self.begin * token,
        )

    def place_in(self, output: torch.Tensor) -> torch.Tensor:
        """(1, all tokens, heads, dim) -> a view (rows, tokens, heads, dim)."""
        return self.take(output.transpose(1, 2)).transpose(1, 2)

    def last(self, count: int, hidden: torch.Tensor) -> torch.Tensor:
        """The last tokens of each row: (1, all tokens, size) -> a view (rows, `count`, size); of one, (rows, size)."""
        _, token, number = hidden.stride()
        step, size = self.tokens * token, hidden.shape[2]
        offset = hidden.storage_offset() + (self.begin + self.tokens - count) * token
        if count == 1:
            return hidden.as_strided((self.rows, size), (step, number), offset)
        return hidden.as_strided((self.rows, count, size), (step, token, number), offset)

    def mask(self, kind: str, device: torch.device, heads: int = 1) -> torch.Tensor:
        """The mask of a type of layer, on the layer's device, for so many heads' queries side by side as tokens of
        one.
        """
        key = kind, heads, device
        if key not in self._shaped:
            mask = self.masks[kind].to(device, non_blocking=True)
            if heads > 1:
                mask = mask.expand(-1, heads, -1, -1).flatten(1, 2)[:, None]
            self._shaped[key] = mask
        return self._shaped[key]


@dataclass
class Parts:
    """The parts of the pass that is running.

    Attributes:
        parts (`Sequence[Part]`): The local windows, then chunk rows: one part for each batch that attention reads.
        chunks (`Part`): All chunk rows as one part, without masks.
        kinds (`Sequence[str]`): The types of layers. The mask that a layer of kind n is given has n + 1 queries, for
            models hand a layer nothing but the mask of its type.
        states (`Iterable[tuple[torch.Tensor, torch.Tensor]]`): Of the layer that is running: the keys and values that
            each part sees, (rows, kv_heads, keys, dim), once.
    """

    parts: Sequence[Part]
    chunks: Part
    kinds: Sequence[str]
    states: Iterable[tuple[torch.Tensor, torch.Tensor]] = ()

    def placeholders(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Masks for the model to hand to its layers."""
        nothing = torch.zeros(1, device=device)
        tokens = self.chunks.begin + self.chunks.rows * self.chunks.tokens
        return {kind: nothing.expand(1, 1, number + 1, tokens) for number, kind in enumerate(self.kinds)}
