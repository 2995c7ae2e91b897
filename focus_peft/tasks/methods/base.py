"""What the adapter and every baseline have in common: they answer a prompt, and say how well they predict a text's
end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ...passes.ids import check_vocabulary


# Labels whose logits are held at once: a vocabulary is large
AT_ONCE = 1024


class Method(ABC):
    """A way to read long inputs.

    Args:
        model (`PeftModel`): A model with a focus adapter. Baselines use its base model, and the adapter's sizes.
        **overrides: Fields of the adapter's configuration that matter at inference.
    """

    def __init__(self, model: Any, **overrides: Any) -> None:
        self.model = model
        self.base = model.get_base_model()
        self.facts = model.base_model.facts
        self.overrides = overrides
        self.settings = model.base_model.settings(**overrides)

    def load(self) -> None:  # noqa: B027  (most need nothing)
        """Load what it needs besides the model, which else happens when it first reads.

        Raises:
            ValueError: if that is not there.
        """

    def generate(self, ids: list[int], new_tokens: int) -> list[int]:
        """The greedy answer to a prompt, of at most `new_tokens` tokens."""
        self._check(ids)
        with self.reading(len(ids) + new_tokens), torch.no_grad():
            return self.answer(ids, new_tokens)

    def losses(self, ids: list[int], labels: int) -> torch.Tensor:
        """The cross-entropy of each of the last `labels` tokens, given all before it; float32, of shape (labels,).

        Raises:
            ValueError: if there are not more tokens than labels.
        """
        if not 0 < labels < len(ids):
            raise ValueError(
                f"`labels` is {labels}, but of {len(ids)} tokens at least one, and at most all but the first, can be "
                "labels; give longer texts, or fewer labels."
            )
        self._check(ids)
        with self.reading(len(ids)), torch.no_grad():
            return self.label_losses(ids, labels)

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        """Why `tokens` tokens, of which the last `new_tokens` are generated or labels, cannot be read, if they
        can't.
        """
        return None

    def refusal_for_room(self, tokens: int, new_tokens: int) -> str | None:
        """Why the adapter cannot read so many tokens within the positions of the model, if it can't."""
        try:
            self.settings.check_room(self.settings.chunks_of(tokens), new_tokens)
        except ValueError as error:
            return str(error)
        return None

    def longest(self, tokens: int, new_tokens: int = 1) -> int:
        """The most of `tokens` tokens that can be read, the last `new_tokens` included; 0 if no prompt can be."""
        if self.refusal(tokens, new_tokens) is None:
            return tokens
        lengths = range(new_tokens + 1, tokens)
        fitting = bisect_left(lengths, True, key=lambda length: self.refusal(length, new_tokens) is not None)
        return lengths[fitting - 1] if fitting else 0

    @abstractmethod
    def answer(self, ids: list[int], new_tokens: int) -> list[int]:
        """What `generate` returns, for ids that were checked."""

    @abstractmethod
    def label_losses(self, ids: list[int], labels: int) -> torch.Tensor:
        """What `losses` returns, for ids that were checked."""

    def reading(self, tokens: int) -> AbstractContextManager[None]:
        """The context in which the model reads `tokens` tokens, new ones included."""
        return nullcontext()

    def _check(self, ids: list[int]) -> None:
        if not ids:
            raise ValueError("`ids` is empty; give at least one token.")
        check_vocabulary([ids], self.facts.vocab_size, "ids")

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)

    def _generate(self, model: Any, ids: list[int], new_tokens: int, **options: Any) -> list[int]:
        """What `model.generate` answers."""
        prompt = self._tensor(ids)
        config = self.base.generation_config
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=next((i for i in (config.pad_token_id, *end_tokens(self.base)) if i is not None), 0),
            **options,
        )
        return output[0, len(ids) :].tolist()


def token_losses(logits: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """Cross-entropies (labels,), in float32, of logits (labels, vocabulary)."""
    targets = torch.tensor(labels, device=logits.device)
    parts = zip(logits.split(AT_ONCE), targets.split(AT_ONCE))
    return torch.cat([cross_entropy(part.float(), target, reduction="none") for part, target in parts]).cpu()


def greedy(model: Any, logits: torch.Tensor, read: Callable[[list[int]], torch.Tensor], new_tokens: int) -> list[int]:
    """The greedy answer of at most `new_tokens` tokens.

    Args:
        model (`PreTrainedModel`): Says what ends an answer.
        logits (`torch.Tensor` of shape (..., vocabulary)): The one token's that the answer stands behind.
        read (`Callable`): Reads a new token, and returns its logits.
        new_tokens (`int`): The most that are generated.
    """
    ends, new = end_tokens(model), [int(logits.argmax())]
    while new[-1] not in ends and len(new) < new_tokens:
        new.append(int(read(new[-1:]).argmax()))
    return new


def end_tokens(model: Any) -> list[int]:
    """The tokens that an answer ends with."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]
