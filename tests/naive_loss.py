"""
The training losses, slow and obvious: one chunk, one label at a time, every token with a graph. Nothing is imported
from focus_peft.

Every chunk row [chunk][BOS?][prompt] goes through the frozen model from its start, anew for each label, and at its
last token hooks put the twins in. The candidates' keys and values go to the front of an ordinary cache, and the local
window is read behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from reference import KeyValues, PlainModel, cut, joined, read_twins, with_bos
from torch import nn
from transformers import PreTrainedModel


SPECIAL = -100


class NaiveFocus:
    """A frozen model with hand-made twins.

    Args:
        base (`PreTrainedModel`): A copy of the base model that nobody wrapped.
        wrapped (`nn.Module`): The model under test; its twins are copied, now.
        decoding (`str`): The label scheme.
        prompt (`int`): P.
        bos (`int`, *optional*): Goes before prompts and windows that do not start with it.
    """

    def __init__(self, base: PreTrainedModel, wrapped: nn.Module, decoding: str, prompt: int, bos: int | None) -> None:
        twins = read_twins(wrapped)
        self.plain = PlainModel(base.requires_grad_(False), twins, graph=True)
        self.decoding, self.prompt, self.bos = decoding, prompt, bos
        # our own copies, by the names that they have in the model under test
        self.parameters = {
            f"base_model.model.{path}.{name}": parameter.requires_grad_()
            for path, twin in twins.items()
            for name, parameter in twin.named_parameters()
            if name.startswith("focus_")
        }

    def gradients(self) -> dict[str, torch.Tensor | None]:
        return {name: parameter.grad for name, parameter in self.parameters.items()}

    def loss(self, ids: Sequence[int], targets: Sequence[int], sample: Any, span: Any = None) -> torch.Tensor:
        """Mean cross-entropy of the labels of one span of a document's sample, or the sum of those of both spans;
        targets of -100 do not count.
        """
        if span is None:
            spans = [span for span in (sample.continuation, sample.repetition) if span is not None]
            return torch.stack([self.loss(ids, targets, sample, span) for span in spans]).sum()
        losses = [
            F.cross_entropy(logits, torch.tensor(target))
            for logits, target in zip(self.logits(ids, sample, span), targets[span.start + span.local :])
            if target != SPECIAL
        ]
        return torch.stack(losses).mean()

    def choice_loss(self, ids: Sequence[int], sample: Any, span: Any, holders: dict[int, list[int]]) -> torch.Tensor:
        """Mean cross-entropy of what labels look at among the chunks; `holders` has the right ones of some labels."""
        losses = []
        for number, step in enumerate(self._steps(ids, sample, span)):
            if number in holders:
                looks = self.plain.looked_at(*step)
                losses.append(-(looks / looks.sum()).log()[holders[number]].mean())
        return torch.stack(losses).mean()

    def logits(self, ids: Sequence[int], sample: Any, span: Any) -> torch.Tensor:
        """Logits (labels, vocabulary) of the labels of a span."""
        return torch.stack([self.plain.run(*step)[0][-1] for step in self._steps(ids, sample, span)])

    def _steps(
        self, ids: Sequence[int], sample: Any, span: Any
    ) -> Iterator[tuple[list[int], int, KeyValues, KeyValues | None]]:
        """For each label what is run, the last token of which predicts it: tokens, their first position, candidates,
        and what is in the cache behind these."""
        ids = list(ids)
        chunks = cut(ids[: sample.memory], sample.chunk_size)
        window = ids[span.start : span.start + span.local]
        following = ids[span.start + span.local : span.start + span.local + span.labels - 1]
        size = min(self.prompt, sample.chunk_size, span.local)
        prompt = with_bos(window[-size:], self.bos)
        local = with_bos(window, self.bos)
        first = len(chunks) if self.plain.relative else 0
        if self.decoding == "exact":
            candidates = self.plain.candidates(chunks, prompt, 0)
            for number in range(span.labels):
                yield local + following[:number], first, candidates, None
            return
        past = self.plain.run(local[:-1], first)[1] if len(local) > 1 else None
        for number, token in enumerate([local[-1], *following]):
            candidates = self.plain.candidates(chunks, prompt + following[:number], number)
            position = first + len(local) - 1 + number
            yield [token], position, candidates, past
            past = joined([past, self.plain.run([token], position, candidates, past)[1]])
