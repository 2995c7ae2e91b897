"""`read_chunks`, slow and obvious: chosen chunks and window are read from scratch for every token."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from reference import Reference, SlowSequence, with_bos


class SlowReading(SlowSequence):
    """One sequence, read from its start, with the candidates of all chunks in front of those that are read.

    Args:
        reference (`ReadingReference`): Chooses, and reads.
        tokens (`Sequence[int]`): All tokens of the input; with a memory, the question.
        memory (`Sequence[int]`, *optional*): Tokens of a document that stands before the question.
    """

    def __init__(
        self, reference: ReadingReference, tokens: Sequence[int], memory: Sequence[int] | None = None
    ) -> None:
        self.reference = reference
        super().__init__(reference.plain, reference.sizes, tokens, memory)

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add a new turn, which chooses anew, and return the logits of its last token."""
        for token in tokens:
            self.append(token)
        self._split()
        self.logits = self._newest()
        return self.logits

    def _split(self) -> None:
        """Choose: of every split, and of no other token."""
        self.read = self.reference.chosen(self.chunks, self.window)
        super()._split()

    def _in_full(self) -> list[int]:
        """The chunks that are read, and the window."""
        return [token for chunk in self.read for token in self.chunks[chunk]] + self.window

    def _local(self) -> list[int]:
        return with_bos(self._in_full(), self.sizes.bos if self.chunks else None)


class SlowReadingAlone(SlowReading):
    """The same without candidates: the base model reads it."""

    def _newest(self, plain: bool = False) -> torch.Tensor:
        text = with_bos(self._in_full(), self.sizes.bos if self.chunks and 0 not in self.read else None)
        with torch.no_grad():
            return self.reference.model(torch.tensor([text]), use_cache=False).logits[0, -1]


class ReadingReference(Reference):
    """What a wrapped model with `read_chunks` should compute.

    Args:
        reference (`Reference`): Of the same model without.
        count (`int`): Chunks that are read.
        keep (`bool`): Candidates are kept.
    """

    def __init__(self, reference: Reference, count: int, keep: bool) -> None:
        self.plain, self.sizes, self.count, self.keep = reference.plain, reference.sizes, count, keep
        self.model = copy.deepcopy(reference.plain.model)
        for module in self.model.modules():  # no twins
            module._forward_hooks.clear()

    def start(self, tokens: Sequence[int], memory: Sequence[int] | None = None) -> SlowReading:
        """A sequence that has read `tokens` at once, as `generate` does."""
        return (SlowReading if self.keep else SlowReadingAlone)(self, tokens, memory)

    def chosen(self, chunks: list[list[int]], window: list[int]) -> list[int]:
        """The chunks that are looked at most, ascending."""
        looked = self.looked_at(chunks, window) if chunks else []
        order = sorted(range(len(looked)), key=lambda chunk: -looked[chunk])
        return sorted(order[: self.count])

    def looked_at(self, chunks: list[list[int]], window: list[int]) -> list[float]:
        """The attention of the last token to each chunk's candidates, as eager attention has it."""
        sequence = SlowSequence(self.plain, self.sizes, window[:1])
        sequence.chunks, sequence.window = list(chunks), list(window)
        sequence._split()
        sequence._newest()
        return sequence.looked_at().tolist()
