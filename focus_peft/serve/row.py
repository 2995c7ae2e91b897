"""One answer as it grows: a row of a batch, which samples, stops and is paid out by itself."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .text_stream import TextStream


@dataclass(frozen=True)
class Sampled:
    """How the tokens of an answer are chosen.

    Attributes:
        temperature (`float`): 0: the most likely token.
        top_p (`float`): Tokens are drawn from the most likely ones that make up so much.
        seed (`int`): Two answers with one seed are the same, whatever else is in the batch.
        presence, frequency (`float`): What a token's logit loses if the answer has it, and for each time that it does.
        logprobs (`int`, *optional*): How many alternatives are noted with the log-probability of each token. None: not
            even that.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    presence: float = 0.0
    frequency: float = 0.0
    logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token, and the most likely ones in its place: (token, log-probability)."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Attributes:
        text (`str`): Its text; empty where a character or a stop text may not be whole yet.
        logprobs (`list[TokenLogprob]`): Of the tokens behind it, if they were asked for.
        finish (`str`, *optional*): "stop", "length", "time" or "cancelled", with the last piece.
        tokens (`int`): How many tokens the answer has now.
        read_chunks (`list[int]`, *optional*): The chunks that were read in full, with the last piece.
    """

    text: str
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None
    tokens: int = 0
    read_chunks: list[int] | None = None


class Row:
    """One answer as it grows.

    Args:
        ids (`list[int]`): The prompt.
        sampled (`Sampled`): How tokens are chosen.
        max_tokens (`int`): The longest answer.
        text (`TextStream`): Turns tokens into text, and knows what stops it.
        time_limit (`float`): Seconds that the answer may take from its first token on: what was waited for before, a
            turn or a document that was still being read, is not its time.
        send (`Callable`): Takes a `Piece`, or the exception that ended the answer.
    """

    def __init__(
        self,
        ids: list[int],
        sampled: Sampled,
        max_tokens: int,
        text: TextStream,
        time_limit: float,
        send: Callable[[Piece | BaseException], Any],
    ) -> None:
        self.ids, self.sampled, self.max_tokens, self.text = ids, sampled, max_tokens, text
        self.time_limit, self.send = time_limit, send
        self.cancelled = threading.Event()
        self.tokens: list[int] = []
        self.finish: str | None = None
        self._logprobs: list[TokenLogprob] = []
        self._deadline: float | None = None  # on `time.monotonic`
        self._generator = torch.Generator().manual_seed(sampled.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token, from logits (vocabulary,)."""
        how = self.sampled
        logits = logits.float()
        changed = logits.clone()
        for token, times in Counter(self.tokens).items():
            changed[token] -= how.presence + how.frequency * times
        if how.temperature == 0:
            chosen = int(changed.argmax())
        else:
            chosen = self._draw((changed / how.temperature).softmax(-1).cpu())
        if how.logprobs is not None:
            every = logits.log_softmax(-1)
            best = every.topk(how.logprobs)
            top = list(zip(best.indices.tolist(), best.values.tolist()))
            self._logprobs.append(TokenLogprob(chosen, float(every[chosen]), top))
        return chosen

    def _draw(self, probabilities: torch.Tensor) -> int:
        if self.sampled.top_p < 1:
            ordered, order = probabilities.sort(descending=True, stable=True)
            # the first is always there
            beyond = ordered.cumsum(-1) - ordered >= self.sampled.top_p
            probabilities[order[beyond]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def push(self, token: int, ends: list[int]) -> bool:
        """Take a new token; returns whether the answer is whole."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.time_limit
        self.tokens.append(token)
        logprobs, self._logprobs = self._logprobs, []
        if token in ends:
            self.finish, text = "stop", self.text.rest()
        else:
            text, stopped = self.text.push(token)
            if stopped:
                self.finish = "stop"
            elif len(self.tokens) >= self.max_tokens:
                self.finish = "length"
            elif self.cancelled.is_set():
                self.finish = "cancelled"
            elif time.monotonic() > self._deadline:
                self.finish = "time"
            if self.finish and not stopped:
                text += self.text.rest()
        piece = Piece(text, logprobs, self.finish, len(self.tokens))
        if self.finish is None:
            self.send(piece)
        else:
            self._last = piece
        return self.finish is not None

    def close(self, read_chunks: list[int] | None) -> None:
        """Send the last piece."""
        self.send(replace(self._last, read_chunks=read_chunks))
