"""Documents as tokens: cut to length, with the tokens that are labels. Pure but for the processes that share the work."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from .sources import Document


SHORT, LONG, ENDS = "documents that are too short", "instruction pairs that are too long", "ends of documents"
# Documents, and characters, that are tokenised at once
BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 2_000_000

# One piece of a document. `start` and `length` say where its tokens are, `label_start` and `label_end` which of them are labels,
# `text` is a hash of the whole document, `part` the piece's number in it.
PIECE = np.dtype(
    [
        ("start", np.int64),
        ("length", np.int32),
        ("label_start", np.int32),
        ("label_end", np.int32),
        ("part", np.int32),
        ("text", np.uint64),
    ]
)


@dataclass
class Encoded:
    """Some documents as tokens.

    Attributes:
        tokens (`np.ndarray` of int32): Of all pieces, one after another.
        pieces (`np.ndarray` of `PIECE`): `start` counts from the first of `tokens`.
        counts (`Counter[str]`): What was left out, by reason.
        documents (`int`): How many there were.
    """

    tokens: np.ndarray
    pieces: np.ndarray
    counts: Counter[str] = field(default_factory=Counter)
    documents: int = 0


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

    def __call__(self, documents: list[Document]) -> Encoded:
        counts: Counter[str] = Counter()
        tokens: list[np.ndarray] = []
        pieces: list[tuple[int, int, int, int, int, int]] = []
        end = 0
        for document, (ids, first_label) in zip(documents, self._rows(documents)):
            digest = text_hash(document)
            for part, (start, stop) in enumerate(self._cuts(document, len(ids), counts)):
                length = stop - start
                tokens.append(np.asarray(ids[start:stop], dtype=np.int32))
                pieces.append((end, length, first_label, length, part, digest))
                end += length
        joined = np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
        return Encoded(joined, np.array(pieces, dtype=PIECE), counts, len(documents))

    def _cuts(self, document: Document, length: int, counts: Counter[str]) -> list[tuple[int, int]]:
        """Where the pieces of a document begin and end."""
        if length < self.min_tokens:
            counts[SHORT] += 1
            return []
        if length > self.max_tokens and document.answer is not None:
            counts[LONG] += 1  # a piece without its question teaches nothing
            return []
        starts = range(0, length, self.max_tokens)
        cuts = [(start, min(start + self.max_tokens, length)) for start in starts]
        if cuts[-1][1] - cuts[-1][0] < self.min_tokens:
            counts[ENDS] += 1
            del cuts[-1]
        return cuts

    def _rows(self, documents: list[Document]) -> Iterator[tuple[list[int], int]]:
        """For each document its ids, and the number of the first that is a label."""
        texts = iter(self._ids([d.text for d in documents if d.answer is None], special=True))
        pairs = [d for d in documents if d.answer is not None]
        prompts = self._prompts(pairs)
        answers = iter(self._ids([answer for _, answer in prompts], special=False))
        questions = iter(self._ids([prompt for prompt, _ in prompts], special=False))
        for document in documents:
            if document.answer is None:
                yield next(texts), 0
            else:  # two calls, so that the prompt's last tokens are what generation will see
                question, answer = next(questions), next(answers)
                if not self._has_template:
                    before, after = self._frame
                    question, answer = [*before, *question], [*answer, *after]
                yield [*question, *answer], len(question)

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"] if texts else []

    @property
    def _has_template(self) -> bool:
        return self.chat_template and bool(self.tokenizer.chat_template)

    def _prompts(self, pairs: list[Document]) -> list[tuple[str, str]]:
        """Each pair as the text up to the answer, and the answer with whatever ends it."""
        if not self._has_template:
            return [(f"{pair.text}\n\n", str(pair.answer)) for pair in pairs]
        written = []
        for pair in pairs:
            messages = [{"role": "user", "content": pair.text}]
            prompt = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            messages.append({"role": "assistant", "content": str(pair.answer)})
            full = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
            if full.startswith(prompt):
                answer = full[len(prompt) :]
            else:  # a template whose prompt for an answer is not how it writes one
                answer = f"{pair.answer}{self.tokenizer.eos_token or ''}"
            written.append((prompt, answer))
        return written

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
        """Changes when the same documents would give other tokens; `tokenizer` is what `tokenizer_fingerprint` says."""
        described = [tokenizer, self._has_template, self.min_tokens, self.max_tokens]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when the tokenizer would give other tokens, or its chat template another text. Using it changes nothing."""
    described: list[Any] = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.chat_template]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        description = json.loads(backend.to_str())
        # state that a call of the tokenizer leaves behind
        described.append({k: v for k, v in description.items() if k not in ("truncation", "padding")})
    else:
        described.append(sorted(tokenizer.get_vocab().items()))
        described.append({k: v for k, v in tokenizer.init_kwargs.items() if isinstance(v, (bool, int, str))})
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]


def text_hash(document: Document) -> int:
    """64 bits that are the same for the same text."""
    digest = hashlib.blake2b(document.text.encode(), digest_size=8)
    if document.answer is not None:
        digest.update(b"\0" + document.answer.encode())
    return int.from_bytes(digest.digest(), "little")


def in_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of documents whose size is bounded in number and in characters."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text) + len(document.answer or "")
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encode_all(documents: Iterable[Document], encoder: Encoder, num_proc: int | None) -> Iterator[Encoded]:
    """Tokenise documents; what comes out, and its order, do not depend on `num_proc`.

    Args:
        documents (`Iterable[Document]`): Read as they are needed.
        encoder (`Encoder`): Is sent to every process.
        num_proc (`int`, *optional*): Processes. None or 1: this one, where a fast tokenizer uses threads of its own.
    """
    batches = in_batches(documents)
    if num_proc is None or num_proc == 1:
        yield from map(encoder, batches)
        return
    # spawned, because this process may hold threads and a GPU, which do not survive a fork
    with ProcessPoolExecutor(num_proc, get_context("spawn"), _start_worker, (encoder,)) as pool:
        waiting = deque(pool.submit(_encode, batch) for batch in islice(batches, 2 * num_proc))
        try:
            while waiting:
                encoded = waiting.popleft().result()
                waiting.extend(pool.submit(_encode, batch) for batch in islice(batches, 1))
                yield encoded
        finally:
            for future in waiting:
                future.cancel()


_worker: Encoder | None = None


def _start_worker(encoder: Encoder) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    _worker = encoder


def _encode(batch: list[Document]) -> Encoded:
    assert _worker is not None
    return _worker(batch)
