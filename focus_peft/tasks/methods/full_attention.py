"""Full attention: the base model reads everything."""

from __future__ import annotations

from .label_blocks import LabelBlock
from .local_window import LocalWindow


class FullAttention(LocalWindow):
    """The base model reads everything, as far as its window goes: the upper bound."""

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        if tokens <= self.facts.max_positions:
            return None
        return f"{tokens} tokens are more than the {self.facts.max_positions} positions of the model."

    def read(self, ids: list[int], start: int) -> list[int]:
        return ids

    def blocks(self, tokens: int, labels: int) -> list[LabelBlock]:
        return [LabelBlock(0, tokens - labels, tokens)]
