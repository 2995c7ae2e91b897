"""Answers in OpenAI's form, whole or as a stream of events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .requests import ChatRequest, Sampling
from .row import Piece, TokenLogprob


# How an answer ended, as OpenAI calls it
FINISH = {"stop": "stop", "length": "length", "time": "length", "cancelled": "stop"}


class Form:
    """The form of the answers to a request.

    Args:
        request (`Sampling`): Of a chat, or of a text.
        tokenizer: The model's.
        id (`str`): Of the answer.
        created (`int`): Seconds since 1970.
    """

    def __init__(self, request: Sampling, tokenizer: Any, id: str, created: int) -> None:
        self.chat, self.tokenizer = isinstance(request, ChatRequest), tokenizer
        self.id, self.created, self.model = id, created, request.model

    def _whole(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def answer(self, pieces: Sequence[Sequence[Piece]], prompt_tokens: int) -> dict[str, Any]:
        """All answers, whole."""
        choices = []
        for number, those in enumerate(pieces):
            text = "".join(piece.text for piece in those)
            noted = [entry for piece in those for entry in piece.logprobs]
            said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            choices.append(self._choice(number, said, noted, 0, those[-1]))
        whole = self._whole("chat.completion" if self.chat else "text_completion")
        return {**whole, "choices": choices, "usage": usage(prompt_tokens, [those[-1].tokens for those in pieces])}

    def first(self, number: int) -> str:
        """The event that opens an answer of a chat."""
        return self._event({"index": number, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def piece(self, number: int, piece: Piece, offset: int) -> str | None:
        """The event of a piece, whose text begins at an `offset` in the answer; None if there is nothing to tell."""
        if not piece.text and not piece.logprobs and piece.finish is None:
            return None
        said = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        return self._event(self._choice(number, said, piece.logprobs, offset, piece))

    def _choice(
        self, number: int, said: dict[str, Any], noted: Sequence[TokenLogprob], offset: int, last: Piece
    ) -> dict[str, Any]:
        """One of the choices, with what is known behind its last piece."""
        choice = {
            "index": number,
            "finish_reason": None if last.finish is None else FINISH[last.finish],
            **said,
            "logprobs": self.logprobs(noted, offset) if noted else None,
        }
        return choice if last.read_chunks is None else {**choice, "read_chunks": last.read_chunks}

    def used(self, prompt_tokens: int, tokens: Sequence[int]) -> str:
        """The event that says what was used."""
        return event({**self._whole(self._kind), "choices": [], "usage": usage(prompt_tokens, tokens)})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _event(self, choice: dict[str, Any]) -> str:
        return event({**self._whole(self._kind), "choices": [choice]})

    def logprobs(self, noted: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """Log-probabilities of tokens; of a text also where each begins, counted from `offset`."""
        if self.chat:
            return {
                "content": [
                    {**self._told(one.token, one.logprob), "top_logprobs": [self._told(*other) for other in one.top]}
                    for one in noted
                ],
                "refusal": None,
            }
        texts = [self.tokenizer.decode([one.token]) for one in noted]
        ends = [offset]
        for text in texts:
            ends.append(ends[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in noted],
            "top_logprobs": [{self.tokenizer.decode([token]): value for token, value in one.top} for one in noted],
            "text_offset": ends[:-1],
        }

    def _told(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(prompt_tokens: int, tokens: Sequence[int]) -> dict[str, int]:
    new = sum(tokens)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": new, "total_tokens": prompt_tokens + new}


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
