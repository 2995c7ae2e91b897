"""Pure bookkeeping of the two passes: which token stands where, and what it sees.

The chunk pass reads, in every chunk row, the dynamic prompts of all streams of a document (beams, returned sequences,
questions, or the two spans of the training loss), so that streams share the chunk's keys and values. The local pass
reads one row for each stream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass
class ChunkRow:
    """One chunk of the memory: a row of a store.

    Attributes:
        document (`int`): The document that it belongs to.
        index (`int`): Its number among the chunks of the streams that see it.
        length (`int`): Tokens in it.
        rank (`int`): The process that holds it, where chunks are spread over several.
    """

    document: int
    index: int
    length: int
    rank: int = 0


@dataclass
class PassInput:
    """The tensors of one pass, made on the CPU. Rows that see alike share a layout.

    Attributes:
        tokens (`torch.LongTensor` of shape (rows, tokens)): Left-padded ids.
        positions (`torch.LongTensor` of shape (rows, tokens)): Their positions.
        columns (`torch.LongTensor` of shape (rows, tokens)): Where their keys and values go; padding goes to the last
            column.
        visible (`torch.BoolTensor` of shape (layouts, tokens, read columns)): What each token sees.
        query_index (`torch.LongTensor` of shape (layouts, tokens)): Each token's place in the order of its row.
        key_index (`torch.LongTensor` of shape (layouts, read columns)): The place of the key in each column.
        prefix (`int`): The first so many columns hold candidates that stand before all else, outside of sliding
            windows.
        read_start (`int`): The first column that is read.
        layout (`torch.LongTensor` of shape (rows,), *optional*): The layout of each row. None: there is one for all,
            or one for each.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    columns: torch.Tensor
    visible: torch.Tensor
    query_index: torch.Tensor
    key_index: torch.Tensor
    prefix: int = 0
    read_start: int = 0
    layout: torch.Tensor | None = None

    def by_row(self) -> PassInput:
        """The same with a layout for each row."""
        if self.layout is None:
            rows = len(self.tokens)
            parts = (part.expand(rows, *part.shape[1:]) for part in (self.visible, self.query_index, self.key_index))
        else:
            parts = (part[self.layout] for part in (self.visible, self.query_index, self.key_index))
        visible, query_index, key_index = parts
        return replace(self, visible=visible, query_index=query_index, key_index=key_index, layout=None)

    def within(self, window: int) -> torch.Tensor:
        """`visible`, with each token seeing `window` tokens at most, itself included, and all candidates of the
        prefix.
        """
        near = self.query_index[:, :, None] - self.key_index[:, None] < window
        near[..., : self.prefix] = True
        return self.visible & near
