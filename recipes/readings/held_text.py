"""A text whose chunks were read once, and which is asked about."""

from __future__ import annotations

from typing import Any

import torch

from focus_peft.passes.chunking import cut


class HeldText:
    """A text that ends in a local window.

    Args:
        model (`PeftModel`): Reads the chunks.
        ids (`list[int]`): The text.
    """

    def __init__(self, model: Any, ids: list[int]) -> None:
        self.model, self.sizes = model, model.settings().sizes
        held = len(ids) - self.sizes.local
        self.memory = model.encode(ids[:held], progress=False)
        self.chunks = cut(ids[:held], self.sizes.chunk)
        self.end = ids[held:]

    def window(self, question: list[int]) -> list[int]:
        """The last tokens of the text with a question behind it."""
        return [*self.end, *question][-self.sizes.local :]

    def holders(self, place: tuple[int, int]) -> list[int]:
        """The chunks that hold the tokens of a place, from its first one to the one behind its last."""
        begin, end = place
        return list(range(begin // self.sizes.chunk, (end - 1) // self.sizes.chunk + 1))

    def scores(self, window: list[int], read: list[int]) -> torch.Tensor:
        """What the end of a window looks at, with some chunks in full in front of it."""
        text = self.text(window, read)
        return self.model.chunk_scores(torch.tensor([text]), memory=self.memory, local_size=len(text) + 1)[0]

    def text(self, window: list[int], read: list[int]) -> list[int]:
        return [*(token for number in read for token in self.chunks[number]), *window]

    def answer(self, window: list[int], new_tokens: int, **options: Any) -> list[int]:
        """What is generated behind a window, whatever its length; `options` are those of `generate`."""
        sizes = {"local_size": len(window) + new_tokens, "max_new_tokens": new_tokens}
        ids = torch.tensor([window])
        found = self.model.generate(ids, memory=self.memory, do_sample=False, progress=False, **sizes, **options)
        return found[0, len(window) :].tolist()
