"""The local windows that labels are predicted from: those that the adapter decodes a text with."""

from __future__ import annotations

from dataclasses import dataclass

from ...passes.settings import WindowSizes


@dataclass(frozen=True)
class LabelBlock:
    """Consecutive labels that are predicted from one local window, which grows by each label.

    Attributes:
        start (`int`): Where the local window starts; what stands before is the memory.
        first, end (`int`): The labels are the tokens `first` to `end` - 1.
    """

    start: int
    first: int
    end: int


def label_blocks(tokens: int, labels: int, sizes: WindowSizes) -> list[LabelBlock]:
    """The local windows that the adapter decodes the last `labels` of `tokens` tokens with.

    The first label's window is the last `sizes.local` tokens before it. It grows until it has gained a chunk, which
    then goes to the memory.
    """
    first = tokens - labels
    start = max(0, first - sizes.local)
    blocks = []
    while first < tokens:
        if first - start >= sizes.local + sizes.chunk:
            start += sizes.chunk
        end = min(tokens, start + sizes.local + sizes.chunk)
        blocks.append(LabelBlock(start, first, end))
        first = end
    return blocks
