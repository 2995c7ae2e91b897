"""What the adapter and every baseline have in common: a method answers a prompt, and says how well it predicts the end of a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ...passes.ids import check_vocabulary
from ...passes.settings import WindowSizes


# Labels whose logits are held at once: a vocabulary is large
AT_ONCE = 1024


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

    The first label's window is the last `sizes.local` tokens before it. It grows until it has gained a chunk, which then goes
    to the memory.
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

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        """Why `tokens` tokens, of which the last `new_tokens` are generated or labels, cannot be read, if they cannot."""
        return None

    def longest(self, tokens: int, new_tokens: int = 1) -> int:
        """The most of `tokens` tokens that can be read, the last `new_tokens` of them included; 0 if no prompt can be."""
        if self.refusal(tokens, new_tokens) is None:
            return tokens
        lengths = range(new_tokens + 1, tokens)
        fitting = bisect_left(lengths, True, key=lambda length: self.refusal(length, new_tokens) is not None)
        return lengths[fitting - 1] if fitting else 0

    @abstractmethod
    def generate(self, ids: list[int], new_tokens: int) -> list[int]:
        """The greedy answer to a prompt, of at most `new_tokens` tokens."""

    @abstractmethod
    def losses(self, ids: list[int], labels: int) -> torch.Tensor:
        """The cross-entropy of each of the last `labels` tokens, given all before it; float32, of shape (labels,).

        Raises:
            ValueError: if there are not more tokens than labels.
        """

    def _check(self, ids: list[int], labels: int | None = None) -> None:
        if labels is not None and not 0 < labels < len(ids):
            raise ValueError(
                f"`labels` is {labels}, but of {len(ids)} tokens at least one, and at most all but the first, can be labels; "
                "give longer texts, or fewer labels."
            )
        if not ids:
            raise ValueError("`ids` is empty; give at least one token.")
        check_vocabulary([ids], self.facts.vocab_size, "ids")

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)

    def _generate(self, model: Any, ids: list[int], new_tokens: int, **options: Any) -> list[int]:
        """What `model.generate` answers."""
        prompt = self._tensor(ids)
        config = self.base.generation_config
        pad = next((i for i in (config.pad_token_id, *end_tokens(self.base)) if i is not None), 0)
        with torch.no_grad():
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=pad,
                **options,
            )
        return output[0, len(ids) :].tolist()


def token_losses(logits: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """Cross-entropies (labels,), in float32, of logits (labels, vocabulary)."""
    targets = torch.tensor(labels, device=logits.device)
    parts = zip(logits.split(AT_ONCE), targets.split(AT_ONCE))
    return torch.cat([cross_entropy(part.float(), target, reduction="none") for part, target in parts]).cpu()


def end_tokens(model: Any) -> list[int]:
    """The tokens that an answer ends with."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]
