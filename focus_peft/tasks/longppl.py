"""LongPPL: perplexity of the tokens that cannot be predicted without the distant text (Fang et al., "What is wrong
with perplexity for long-context language modeling?", ICLR 2025, arXiv 2410.23771; github.com/PKU-ML/LongPPL).

An evaluator model θ0 tells these key tokens. With the long context l_i = x_<i, and the short one s_i, its last K
tokens,

    LSD(x_i) = log P_θ0(x_i | l_i) - log P_θ0(x_i | s_i)        (long-short difference)
    LCL(x_i) = log P_θ0(x_i | l_i)                              (long-context likelihood)
    I(x_i) = 1 if LSD(x_i) > α and LCL(x_i) > β, else 0
    LongPPL(x; θ, θ0) = exp( Σ_i - I(x_i) log P_θ(x_i | x_<i) / Σ_i I(x_i) )

with α = 2, β = -2 and K = 4096 as published. As in the released code, d = 1024 tokens in a row share the start of
their short context, which so has K to K + d - 1 tokens, and only tokens behind the first K can be key tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..fields import SIZE
from .methods.base import Method, token_losses
from .perplexity import PerplexityTask


# Tokens of the short context (K), and that share its start (d)
SHORT, STRIDE = 4096, 1024
# Of LSD and LCL, in nats
ALPHA, BETA = 2.0, -2.0


@dataclass(frozen=True)
class KeyTokens:
    """The evaluator: finds tokens that its model predicts well, and much better than without the distant text.

    Attributes:
        model (`PreTrainedModel`): A causal language model that reads the whole text with full attention.
        short (`int`): K. Defaults to 4096.
        stride (`int`): d. Defaults to 1024.
        alpha, beta (`float`): Thresholds of LSD and LCL, in nats. Defaults to 2 and -2.
    """

    model: Any
    short: int = SHORT
    stride: int = STRIDE
    alpha: float = ALPHA
    beta: float = BETA

    def __post_init__(self) -> None:
        for name in ("short", "stride"):
            SIZE.check(f"`{name}`", getattr(self, name))

    def refusal(self, tokens: int) -> str | None:
        """Why a text of so many tokens cannot be read, if it cannot."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and tokens > most:
            return (
                f"The evaluator that finds key tokens reads the whole text, but {tokens} tokens are more than the "
                f"{most} positions of its model; name a model with more in `evaluator`."
            )
        return None

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """Places of the key tokens, in order.

        Raises:
            ValueError: if the text is longer than the model's positions, or has no token behind the first `short`
                ones.
        """
        reason = self.refusal(len(ids))
        if reason is not None:
            raise ValueError(reason)
        if len(ids) <= self.short:
            raise ValueError(
                f"A text of {len(ids)} tokens has none behind its first `short` = {self.short}, so none that can be a "
                "key token; give longer texts, or a smaller `short`."
            )
        long = self._losses(ids, len(ids) - self.short)
        near = []
        for start in range(0, len(ids) - self.short, self.stride):
            part = ids[start : start + self.short + self.stride]
            near.append(self._losses(part, len(part) - self.short))
        is_key = (torch.cat(near) - long > self.alpha) & (-long > self.beta)
        return [self.short + place for place in is_key.nonzero()[:, 0].tolist()]

    def _losses(self, ids: Sequence[int], labels: int) -> torch.Tensor:
        read = torch.tensor([list(ids[:-1])], device=self.model.device)
        with torch.no_grad():
            output = self.model(read, attention_mask=torch.ones_like(read), use_cache=False, logits_to_keep=labels)
        return token_losses(output.logits[0], list(ids[-labels:]))


@dataclass(frozen=True)
class LongPerplexityTask(PerplexityTask):
    """LongPPL of texts. Labels are all tokens behind the first `short`, so that a method's windows do not depend on
    the evaluator; of these, key tokens count.

    Attributes:
        short (`int`): That of the evaluator. Defaults to 4096.
    """

    short: int = SHORT

    def __post_init__(self) -> None:
        if self.tokens <= self.short:
            raise ValueError(
                f"`tokens` is {self.tokens}, but only tokens behind the first `short` = {self.short} can be key "
                "tokens; give more."
            )
        super().__post_init__()

    @property
    def label_count(self) -> int:
        return self.tokens - self.short

    def __call__(
        self, method: Method, documents: Sequence[Sequence[int]], find: KeyTokens | None = None
    ) -> dict[str, float]:
        """{"cross_entropy": mean over the key tokens of all texts, in nats, "perplexity": its exponential, which is
        LongPPL, "labels": how many they are}.

        Args:
            method (`Method`): What is evaluated.
            documents (`Sequence[Sequence[int]]`): Token ids.
            find (`KeyTokens`, *optional*): The evaluator. Defaults to the method's base model.

        Raises:
            ValueError: if there is no key token.
        """
        find = KeyTokens(method.base, self.short) if find is None else find
        found = torch.cat([self.losses(method, ids, find(ids)) for ids in self.texts(documents)])
        if not len(found):
            raise ValueError(f"There is no key token in {self.samples} `samples`; give more, or longer texts.")
        loss = float(found.double().mean())
        return {"cross_entropy": loss, "perplexity": math.exp(loss), "labels": len(found)}
