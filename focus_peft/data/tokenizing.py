"""Documents as tokens: cut to length, with the tokens that are labels."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase


SHORT, LONG, ENDS = "documents that are too short", "instruction pairs that are too long", "ends of documents"

# What is known of a piece of a document: tokens, the first that is a label (all later ones are), the number of the
# piece in its document, and a hash of the whole document
PIECE = np.dtype([("length", np.int32), ("first_label", np.int32), ("part", np.int32), ("text", np.uint64)])


@dataclass(frozen=True)
class Encoder:
    """Turns documents into pieces.

    Attributes:
        tokenizer: Any of transformers' tokenizers.
        chat_template (`bool`): Write instruction pairs with the tokenizer's chat template, if it has one.
        min_tokens, max_tokens (`int`): Lengths of a piece.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: bool
    min_tokens: int
    max_tokens: int

    def __call__(self, texts: list[str], answers: list[str | None]) -> dict[str, list[Any]]:
        """Tokenize documents: a text each, or an instruction and its answer.

        Returns:
            `dict[str, list]`: a row for each piece, with its `input_ids` and the fields of `PIECE`; and a row with the
            reason as `left_out` for each that is left out.
        """
        pieces: list[tuple[Any, ...]] = []
        for text, answer, (ids, first_label) in zip(texts, answers, self._rows(texts, answers)):
            cuts, reason = self._cuts(len(ids), answer is not None)
            for part, (start, stop) in enumerate(cuts):
                pieces.append((ids[start:stop], stop - start, first_label, part, text_hash(text, answer), None))
            if reason is not None:
                pieces.append(([], 0, 0, 0, 0, reason))
        names = ("input_ids", "length", "first_label", "part", "text", "left_out")
        return {name: [piece[column] for piece in pieces] for column, name in enumerate(names)}

    def _cuts(self, length: int, is_pair: bool) -> tuple[list[tuple[int, int]], str | None]:
        """Where the pieces of a document begin and end, and why some or all of it is left out."""
        if length < self.min_tokens:
            return [], SHORT
        if length > self.max_tokens and is_pair:
            return [], LONG  # a piece without its question teaches nothing
        cuts = [(start, min(start + self.max_tokens, length)) for start in range(0, length, self.max_tokens)]
        if cuts[-1][1] - cuts[-1][0] < self.min_tokens:
            return cuts[:-1], ENDS
        return cuts, None

    def _rows(self, texts: list[str], answers: list[str | None]) -> Iterator[tuple[list[int], int]]:
        """For each document its ids, and the number of the first that is a label."""
        plain = iter(self._ids([text for text, answer in zip(texts, answers) if answer is None], special=True))
        pairs = [self._prompt(text, answer) for text, answer in zip(texts, answers) if answer is not None]
        # two calls, so that the prompt's last tokens are what generation will see
        prompts = iter(self._ids([prompt for prompt, _ in pairs], special=False))
        replies = iter(self._ids([reply for _, reply in pairs], special=False))
        before, after = ([], []) if self._has_template or not pairs else self._frame
        for answer in answers:
            if answer is None:
                yield next(plain), 0
            else:
                prompt = [*before, *next(prompts)]
                yield [*prompt, *next(replies), *after], len(prompt)

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"] if texts else []

    @property
    def _has_template(self) -> bool:
        return self.chat_template and bool(self.tokenizer.chat_template)

    def _prompt(self, text: str, answer: str) -> tuple[str, str]:
        """A pair as the text up to the answer, and the answer with whatever ends it."""
        if not self._has_template:
            return f"{text}\n\n", answer
        messages = [{"role": "user", "content": text}]
        prompt = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        messages.append({"role": "assistant", "content": answer})
        full = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        if full.startswith(prompt):
            return prompt, full[len(prompt) :]
        # the template prompts for an answer in another way than it writes one
        return prompt, f"{answer}{self.tokenizer.eos_token or ''}"

    @functools.cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens before a prompt, as the tokenizer puts them, and after an answer, which always ends."""
        bare = self._ids(["a"], special=False)[0]
        framed = self._ids(["a"], special=True)[0]
        at = next((n for n in range(len(framed)) if framed[n : n + len(bare)] == bare), 0)
        before, after = framed[:at], framed[at + len(bare) :]
        eos = self.tokenizer.eos_token_id
        return before, after or ([] if eos is None else [eos])

    def fingerprint(self, tokenizer: str) -> str:
        """Changes when the same documents would give other tokens; `tokenizer` is its `tokenizer_fingerprint`."""
        described = [tokenizer, self._has_template, self.min_tokens, self.max_tokens]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when the tokenizer would give other tokens, or its chat template another text, not when it is used."""
    described: list[Any] = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.chat_template]
    if tokenizer.split_special_tokens:  # else not named, so that caches keep their names
        described.append("split_special_tokens")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        description = json.loads(backend.to_str())
        # state that a call of the tokenizer leaves behind
        described.append({k: v for k, v in description.items() if k not in ("truncation", "padding")})
    else:
        described.append(sorted(tokenizer.get_vocab().items()))
        described.append({k: v for k, v in tokenizer.init_kwargs.items() if isinstance(v, (bool, int, str))})
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]


def text_hash(text: str, answer: str | None = None) -> int:
    """64 bits, as a signed integer, that are the same for the same document."""
    digest = hashlib.blake2b(text.encode(), digest_size=8)
    if answer is not None:
        digest.update(b"\0" + answer.encode())
    return int.from_bytes(digest.digest(), "little", signed=True)
