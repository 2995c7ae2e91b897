"""`read_chunks`, slow and obvious: the base model reads chosen chunks and window from scratch for every token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from reference import PlainModel, Reference, Sizes, cut, joined


class SlowReading:
    """One sequence, read from its start.

    Args:
        reference (`ReadingReference`): Chooses, and reads.
        tokens (`Sequence[int]`): All tokens of the input; with a memory, the question.
        memory (`Sequence[int]`, *optional*): Tokens of a document that stands before the question.
    """

    def __init__(
        self, reference: ReadingReference, tokens: Sequence[int], memory: Sequence[int] | None = None
    ) -> None:
        self.reference, self.sizes = reference, reference.sizes
        tokens = [int(token) for token in tokens]
        boundary = max(0, len(tokens) - self.sizes.local)
        self.chunks = cut([int(t) for t in memory] if memory is not None else [], self.sizes.chunk)
        self.chunks += cut(tokens[:boundary], self.sizes.chunk)
        self.window = tokens[boundary:]
        self._choose()

    def copy(self) -> SlowReading:
        """An independent sequence in the same state."""
        twin = copy.copy(self)
        twin.chunks, twin.window = list(self.chunks), list(self.window)
        return twin

    def append(self, token: int) -> torch.Tensor:
        """Add a token and return its logits (vocabulary,)."""
        if self._add(token):
            self._choose()
        return self.logits

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add a new turn and return the logits of its last token."""
        for token in tokens:
            self._add(token)
        self._choose()
        return self.logits

    def _add(self, token: int) -> bool:
        """Whether the window spilled."""
        self.window.append(int(token))
        if len(self.window) < self.sizes.local + self.sizes.chunk:
            return False
        self.chunks.append(self.window[: self.sizes.chunk])
        self.window = self.window[self.sizes.chunk :]
        return True

    def _choose(self) -> None:
        looked = self.reference.looked_at(self.chunks, self.window) if self.chunks else []
        order = sorted(range(len(looked)), key=lambda chunk: -looked[chunk])
        self.read = sorted(order[: self.reference.count])

    @property
    def text(self) -> list[int]:
        """What the base model reads."""
        text = [token for chunk in self.read for token in self.chunks[chunk]] + self.window
        bos = self.sizes.bos
        begins = not self.chunks or 0 in self.read or bos is None or text[0] == bos
        return text if begins else [bos, *text]

    @property
    def logits(self) -> torch.Tensor:
        with torch.no_grad():
            return self.reference.model(torch.tensor([self.text]), use_cache=False).logits[0, -1]


class ReadingReference:
    """What a wrapped model with `read_chunks` should compute.

    Args:
        reference (`Reference`): Of the same model without.
        count (`int`): Chunks that are read.
    """

    def __init__(self, reference: Reference, count: int) -> None:
        self.reference, self.count = reference, count
        self.model = copy.deepcopy(reference.plain.model)
        for module in self.model.modules():  # no twins
            module._forward_hooks.clear()

    @property
    def plain(self) -> PlainModel:
        return self.reference.plain

    @property
    def sizes(self) -> Sizes:
        return self.reference.sizes

    def start(self, tokens: Sequence[int], memory: Sequence[int] | None = None) -> SlowReading:
        """A sequence that has read `tokens` at once, as `generate` does."""
        return SlowReading(self, tokens, memory)

    def looked_at(self, chunks: list[list[int]], window: list[int]) -> list[float]:
        """The attention of the last tokens of the prompt to each chunk's candidates, as eager attention has it: the
        mean over tokens, each with candidates of its own.
        """
        looking = min(8, self.sizes.prompt, len(window))
        sequence = self.reference.start(window[:1])
        sequence.sizes = replace(self.sizes, prompt=self.sizes.prompt - looking + 1)
        sequence.chunks, sequence.window = list(chunks), list(window[: len(window) - looking + 1])
        sequence._split()
        looked = []
        for number in range(looking):
            if number:
                token = window[len(window) - looking + number]
                sequence.window.append(token)
                sequence.prompt.append(token)
                sequence.steps += 1
            sequence._refresh()
            local, past = sequence._local(), sequence.local_past
            place = sequence._position(len(local) - 1)
            looked.append(self.plain.looked_at(local[-1:], place, sequence.candidates, past))
            _, newest = self.plain.run(local[-1:], place, sequence.candidates, past)
            sequence.local_past = joined([past, newest])
        return torch.stack(looked).mean(0).tolist()

    def greedy(
        self, tokens: Sequence[int], count: int, memory: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` greedy tokens (count,) and the logits (count, vocabulary) that they were taken from."""
        return greedy_reading(self.start(tokens, memory), count)


def greedy_reading(sequence: SlowReading, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Go on greedily; the last of the `count` tokens is not read."""
    rows = [sequence.logits]
    while len(rows) < count:
        rows.append(sequence.append(int(rows[-1].argmax())))
    return torch.stack([row.argmax() for row in rows]), torch.stack(rows)
