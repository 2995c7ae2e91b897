"""Tokens as text, piece by piece, up to a text that stops it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


# What a character looks like whose last byte is yet to come
BROKEN = "\ufffd"
# Tokens whose text is decoded anew with each further one: some depend on those before them
CONTEXT = 8


class TextStream:
    """Tokens as text.

    Args:
        tokenizer: The model's.
        stops (`Sequence[str]`): The text ends before the first of these.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, list(stops)
        self._tokens: list[int] = []
        self._settled = 0  # tokens whose text has been taken over
        self._held = ""  # text that may be the beginning of a stop

    def push(self, token: int) -> tuple[str, bool]:
        """Take a token; returns the text that is certain by now, and whether a stop was met."""
        self._tokens.append(token)
        return self._settle(self._new_text())

    def rest(self) -> str:
        """The text that was held back, when nothing follows."""
        text, stopped = self._settle(self._new_text(whole=True))
        if not stopped:
            text, self._held = text + self._held, ""
        return text

    def _new_text(self, whole: bool = False) -> str:
        first = max(0, self._settled - CONTEXT)
        before = self._decode(self._tokens[first : self._settled])
        after = self._decode(self._tokens[first:])
        if not whole and after.endswith(BROKEN):
            return ""
        self._settled = len(self._tokens)
        return after[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _settle(self, new: str) -> tuple[str, bool]:
        text = self._held + new
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False
