"""A document that is read once and asked about many times."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from demos.answers import Answer, answers, read
from demos.questions import haystack, question_ids
from focus_peft.cli.console import CommandError
from focus_peft.cli.generate import decode_document
from focus_peft.memory.memory import Memory


# Tokens of the local window that are kept free for a question; what stands before them is the end of the document
QUESTION_ROOM = 128


class SessionError(ValueError):
    """What the user can do something about, as a sentence for the page."""


@dataclass
class Document:
    """A document that was read.

    Attributes:
        name (`str`): Of the file.
        ids (`torch.LongTensor` of shape (1, tokens)): All of it.
        memory (`Memory`, *optional*): All but its end. None: the document fits the local window beside a question.
        seconds (`float`): How long reading took.
        number (`str`, *optional*): The number that is hidden in it.
    """

    name: str
    ids: torch.Tensor
    memory: Memory | None
    seconds: float
    number: str | None = None

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]

    @property
    def end(self) -> torch.Tensor:
        """What the memory does not hold: ids of shape (1, tokens)."""
        return self.ids[:, 0 if self.memory is None else self.memory.num_tokens :]


@dataclass
class Reply:
    """Three answers to a question as they grow, and, when all are whole, the attention behind the second.

    Attributes:
        alone, adapter, reading (`Answer`): Of the truncated base model, of the adapter, and of the adapter when it
            reads the chunks in full that the question looks at most.
        shares (`list[float]`, *optional*): The share of attention that the first word of the adapter's answer paid to
            each chunk.
    """

    alone: Answer = field(default_factory=lambda: Answer(""))
    adapter: Answer = field(default_factory=lambda: Answer(""))
    reading: Answer = field(default_factory=lambda: Answer(""))
    shares: list[float] | None = None


class DocumentSession:
    """One model, and one document at a time: a memory takes gigabytes.

    Args:
        model (`PeftModel`): With the adapter.
        tokenizer: The model's.
        new_tokens (`int`): The longest answer.
        max_tokens (`int`): The longest document.
        example_tokens (`int`), seed (`int`): Length of the example, and what chooses the number that is hidden in it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        new_tokens: int = 48,
        max_tokens: int = 200_000,
        example_tokens: int = 30_000,
        seed: int = 0,
    ) -> None:
        self.model, self.tokenizer, self.new_tokens, self.max_tokens = model, tokenizer, new_tokens, max_tokens
        self.example_tokens, self.seed = example_tokens, seed
        self.read_chunks = 1  # that are read in full for the third answer
        self.local = model.settings().sizes.local
        self.room = min(QUESTION_ROOM, self.local // 2)
        self.document: Document | None = None
        self.number = 0  # of the document, so that a question about an earlier one is noticed
        self._busy = threading.Lock()  # the adapter is enabled, or disabled, for everybody

    def read_file(self, file: str | Path | None, progress: Callable[[float], Any]) -> int:
        """Read a text file in place of the document that is there, and return the number that `ask` wants.

        Raises:
            SessionError: if there is no file, or no text in it, or too much.
        """
        if file is None:
            raise SessionError("Choose a text file first, or take the example.")
        path = Path(file)
        try:
            text = decode_document(path.read_bytes(), f"The file {path.name}")
        except (CommandError, OSError) as error:
            raise SessionError(f"{str(error).rstrip('.')}.") from error
        ids = self.tokenizer(text, verbose=False, return_tensors="pt").input_ids
        return self._read(path.name, ids, None, progress)

    def read_example(self, progress: Callable[[float], Any]) -> int:
        """Read the Python reference with a hidden sentence, as `read_file` does a file."""
        ids, number = haystack(self.tokenizer, self.example_tokens, self.seed)
        return self._read("The Python reference", ids, number, progress)

    def _read(self, name: str, ids: torch.Tensor, number: str | None, progress: Callable[[float], Any]) -> int:
        tokens = ids.shape[1]
        if tokens > self.max_tokens:
            raise SessionError(
                f"{name} has {tokens:,} tokens, and this page was started for at most {self.max_tokens:,}; choose a "
                "shorter text, or start it with a larger --max-tokens, if there is memory for that."
            )
        with self._busy:
            self.document = None  # its memory is let go before the next is made
            memory, seconds = None, 0.0
            if tokens + self.room > self.local:
                end = self.local - self.room
                memory, seconds = read(self.model, ids[:, : tokens - end], progress)
            self.document = Document(name, ids, memory, seconds, number)
            self.number += 1
            return self.number

    def held(self, number: int | None) -> Document:
        """The document of that number.

        Raises:
            SessionError: if none was read, or another one since.
        """
        if number is None:
            raise SessionError("Read a document first: a file of yours, or the example.")
        if self.document is None or number != self.number:
            raise SessionError("This document was put away, for another one in another window perhaps; read it again.")
        return self.document

    def ask(self, number: int | None, question: str) -> Iterator[Reply]:
        """Ask about a document, first the truncated base model, then the adapter, then with chunks in full; yields
        what there is so far.

        Raises:
            SessionError: if there is no question, or it is too long, or no document of that number.
        """
        question = " ".join(question.split())
        if not question:
            raise SessionError("Write a question first.")
        asked = question_ids(self.tokenizer, question)
        if asked.shape[1] > self.room:
            raise SessionError(
                f"The question has {asked.shape[1]} tokens, and there is room for {self.room}; ask a shorter one."
            )
        document, reply = self.held(number), Reply()
        truncated = torch.cat([document.ids, asked], dim=1)[:, -self.local :]
        for reply.alone in answers(self.model, self.tokenizer, truncated, self.new_tokens, within=self._alone()):
            yield reply
        ids, memory = torch.cat([document.end, asked], dim=1), document.memory
        for reply.adapter in answers(self.model, self.tokenizer, ids, self.new_tokens, memory, within=self._busy):
            yield reply
        reading: dict[str, Any] = {"within": self._busy, "read_chunks": self.read_chunks}
        for reply.reading in answers(self.model, self.tokenizer, ids, self.new_tokens, memory, **reading):
            yield reply
        reply.shares = []
        if memory is not None:
            with self._busy:
                (shares,) = self.model.chunk_attention(ids, memory=memory)
            reply.shares = shares.tolist()
        yield reply

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Within the context, the model is the base model, and this thread's."""
        with self._busy, self.model.disable_adapter():
            yield

    def chunk_texts(self, document: Document) -> list[str]:
        """The text of each chunk of the memory."""
        if document.memory is None:
            return []
        (ids,), size = document.memory.documents, document.memory.chunk_size
        texts = [self.tokenizer.decode(ids[begin : begin + size]) for begin in range(0, len(ids), size)]
        return [text.strip("\ufffd") for text in texts]  # of a character that is cut in two
