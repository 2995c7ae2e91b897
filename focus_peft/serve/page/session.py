"""The document of a browser's tab, which is read once, and questions about it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from ...tasks.needle import question_text
from ..documents import Document
from ..engine import Engine
from ..errors import ApiError
from ..prompts import Prompts
from ..row import Piece, Row, Sampled
from ..text_stream import TextStream


# Seconds between two looks at how far the reading is
TICK = 0.2


@dataclass(frozen=True)
class Reading:
    """A document that was read.

    Attributes:
        document (`Document`): As the server keeps it.
        end (`list[int]`): Its last tokens, as many as fit the local window.
        chunks (`list[str]`): The texts of its chunks. None, if it fits the local window beside a question.
        nbytes (`int`): Of the chunks' keys and values.
        seconds (`float`): How long reading took.
        number (`str`, *optional*): The number that is hidden in it.
    """

    document: Document
    end: list[int]
    chunks: list[str]
    nbytes: int
    seconds: float
    number: str | None = None


@dataclass(frozen=True)
class Answer:
    """An answer, or its beginning.

    Attributes:
        text (`str`): On one line.
        rate (`float`): Tokens per second, waiting and reading the question included.
        read (`list[int]`): The chunks that were read in full, as soon as the answer is whole.
    """

    text: str = ""
    rate: float = 0.0
    read: list[int] = field(default_factory=list)


@dataclass
class Reply:
    """Three answers to a question as they grow, and, when all are whole, the attention behind the second.

    Attributes:
        alone, adapter, in_full (`Answer`): Of the base model with the end of the document, of the adapter, and of the
            adapter when it reads the chunks in full that the question looks at most.
        shares (`list[float]`): The share of attention that the first word of the adapter's answer pays to each chunk.
    """

    alone: Answer = Answer()
    adapter: Answer = Answer()
    in_full: Answer = Answer()
    shares: list[float] = field(default_factory=list)


class Session:
    """What one tab reads and asks.

    Args:
        engine (`Engine`): Answers, and has the documents.
        prompts (`Prompts`): Makes tokens of questions.

    Attributes:
        reading (`Reading`, *optional*): What was read.
    """

    def __init__(self, engine: Engine, prompts: Prompts) -> None:
        self.engine, self.prompts, self.documents = engine, prompts, engine.documents
        self.reading: Reading | None = None
        self._document: Document | None = None
        settings = engine.model.settings()
        self.local = settings.sizes.local
        # an answer of the base model alone ends before its window would become a chunk
        self._room = settings.window_limit(0) - self.local

    def read(self, name: str, text: str, number: str | None, progress: Callable[[float], Any]) -> Reading:
        """Read a document in place of the one that is there.

        Args:
            name (`str`), text (`str`): Of the document.
            number (`str`, *optional*): What is hidden in it.
            progress (`Callable`): Called with the share of it that has been read.

        Raises:
            ApiError: if it cannot be read.
        """
        self.forget()
        start = time.perf_counter()
        self._document = document = self.documents.add(name, text)
        while not document.ready.wait(TICK):
            progress(document.progress)
        seconds = time.perf_counter() - start
        with self.documents.held(document.id) as (memory, end):
            assert memory is not None  # it has an id
            (held,), size, nbytes = memory.documents, memory.chunk_size, memory.nbytes
        ids = [*held, *end]
        beginnings = range(0, len(held) if len(ids) + self.local // 2 > self.local else 0, size)
        texts = [self.engine.tokenizer.decode(held[begin : begin + size]) for begin in beginnings]
        chunks = [text.strip("\ufffd") for text in texts]  # of a character that is cut in two
        self.reading = Reading(document, ids[-self.local :], chunks, nbytes, seconds, number)
        return self.reading

    def forget(self) -> None:
        """Delete the document."""
        document, self._document, self.reading = self._document, None, None
        if document is not None:
            with contextlib.suppress(ApiError):  # a client may have deleted it
                self.documents.delete(document.id)

    def ask(self, question: str) -> Iterator[Reply]:
        """Ask about the document, first the base model with its end, then the adapter, then with chunks in full;
        yields what there is so far.

        Raises:
            ValueError: if there is no question, or it is too long, or nothing was read.
            ApiError: if it cannot be answered.
        """
        reading, question = self.reading, " ".join(question.split())
        if reading is None:
            raise ValueError("Read a document first: a file of yours, or the example.")
        if not question:
            raise ValueError("Write a question first.")
        asked = self.prompts.of_text(question_text(question), begins=False)
        if len(asked) > self.local // 2:
            raise ValueError(
                f"The question has {len(asked)} tokens, and there is room for {self.local // 2}; ask a shorter one."
            )
        reply, truncated = Reply(), (reading.end + asked)[-self.local :]
        # what fits the local window is read by the base model alone
        ids, document = (asked, reading.document.id) if reading.chunks else (truncated, None)
        for reply.alone in self._answers(truncated, None, None):
            yield reply
        for reply.adapter in self._answers(ids, document, None):
            yield reply
        for reply.in_full in self._answers(ids, document, self.engine.settings.read_chunks or 1):
            yield reply
        if document is not None:
            reply.shares = self.engine.chunk_attention(ids, document)
        yield reply

    def _answers(self, ids: list[int], document: str | None, read_chunks: int | None) -> Iterator[Answer]:
        """An answer as it grows, up to the end of its line; the last one is whole."""
        settings, pieces = self.engine.settings, SimpleQueue[Piece | BaseException]()
        longest = settings.max_tokens if document is not None else min(settings.max_tokens, self._room)
        text, stream = "", TextStream(self.engine.tokenizer, ["\n"])
        row = Row(ids, Sampled(temperature=0), longest, stream, settings.time_limit, pieces.put)
        start, piece = time.perf_counter(), Piece("")
        self.engine.submit([row], document, read_chunks)
        try:
            while piece.finish is None:
                found = pieces.get()
                if isinstance(found, BaseException):
                    raise found
                piece, text = found, text + found.text
                rate = piece.tokens / (time.perf_counter() - start)
                yield Answer(text.strip(), rate, piece.read_chunks or [])
        finally:
            row.cancelled.set()  # where nobody listens any more
