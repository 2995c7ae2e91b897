"""`read_chunks`, slow and obvious: the base model reads chosen chunks and window from scratch for every token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from reference import Reference, SlowSequence


class SlowReading(SlowSequence):
    """One sequence, read from its start.

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
        self._cut_prompt()
        looked = self.reference.looked_at(self.chunks, self.window) if self.chunks else []
        order = sorted(range(len(looked)), key=lambda chunk: -looked[chunk])
        self.read = sorted(order[: self.reference.count])

    def _newest(self, plain: bool = False) -> torch.Tensor:
        with torch.no_grad():
            return self.reference.model(torch.tensor([self.text]), use_cache=False).logits[0, -1]

    @property
    def text(self) -> list[int]:
        """What the base model reads."""
        text = [token for chunk in self.read for token in self.chunks[chunk]] + self.window
        bos = self.sizes.bos
        begins = not self.chunks or 0 in self.read or bos is None or text[0] == bos
        return text if begins else [bos, *text]


class ReadingReference(Reference):
    """What a wrapped model with `read_chunks` should compute.

    Args:
        reference (`Reference`): Of the same model without.
        count (`int`): Chunks that are read.
    """

    def __init__(self, reference: Reference, count: int) -> None:
        self.plain, self.sizes, self.count = reference.plain, reference.sizes, count
        self.model = copy.deepcopy(reference.plain.model)
        for module in self.model.modules():  # no twins
            module._forward_hooks.clear()

    def start(self, tokens: Sequence[int], memory: Sequence[int] | None = None) -> SlowReading:
        """A sequence that has read `tokens` at once, as `generate` does."""
        return SlowReading(self, tokens, memory)

    def looked_at(self, chunks: list[list[int]], window: list[int]) -> list[float]:
        """The attention of the last tokens of the prompt to each chunk's candidates, as eager attention has it: the
        mean over tokens, each with candidates of its own.
        """
        looking = min(8, self.sizes.prompt, len(window))
        first = len(window) - looking
        sizes = replace(self.sizes, prompt=self.sizes.prompt - looking + 1)
        sequence = SlowSequence(self.plain, sizes, window[:1])
        sequence.chunks, sequence.window = list(chunks), list(window[: first + 1])
        sequence._split()
        sequence._newest()
        looked = [sequence.looked_at()]
        for token in window[first + 1 :]:
            sequence.append(token)
            looked.append(sequence.looked_at())
        return torch.stack(looked).mean(0).tolist()
