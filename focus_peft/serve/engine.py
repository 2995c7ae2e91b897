"""The model at work: requests about one document are answered together, others take turns."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from . import batch
from .documents import DocumentStore
from .errors import ApiError
from .metrics import Metrics
from .row import Row
from .settings import ServerSettings


# What can be answered together: a document (or nothing, for a prompt of its own) and how many chunks are read
Key = tuple[str | None, int | None, int | None]


class Engine:
    """Answers prompts.

    Prompts about one document wait a moment for each other, or as long as the batch before them takes; then they are
    generated together. Batches of other documents take turns with it, token by token, as requests in threads do.

    Args:
        model (`PeftModel`): With the adapter.
        tokenizer: The model's.
        settings (`ServerSettings`): Sizes and limits.
        documents (`DocumentStore`): What can be asked about.
        metrics (`Metrics`): Counts what happens.
    """

    def __init__(
        self, model: Any, tokenizer: Any, settings: ServerSettings, documents: DocumentStore, metrics: Metrics
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.documents, self.metrics = documents, metrics
        self._lock = threading.Lock()
        self._waiting: dict[Key, list[Row]] = {}
        self._running: dict[Key, list[Row]] = {}
        self._prompts = 0
        self._closed = False
        self._workers = ThreadPoolExecutor(settings.running, "generate")
        self._kept = contextlib.ExitStack()
        # chunks of prompts that begin alike are read once
        self._kept.enter_context(model.base_model.keeping_chunks(settings.memory_gb))
        self.pad = tokenizer.pad_token_id or 0

    def submit(self, rows: Sequence[Row], document: str | None, read_chunks: int | None) -> None:
        """Let answers be generated; their pieces go to the rows.

        Args:
            rows (`Sequence[Row]`): Answers to one prompt.
            document (`str`, *optional*): The id of the document that it is about.
            read_chunks (`int`, *optional*): As in `FocusConfig`.

        Raises:
            ApiError: if too many answers wait.
        """
        with self._lock:
            if self._closed:
                raise shutting_down()
            waiting = sum(map(len, self._waiting.values()))
            if waiting + len(rows) > self.settings.queue_size:
                raise ApiError(
                    429,
                    f"{waiting} answers are waiting already, of at most {self.settings.queue_size}; try again later.",
                    code="queue_full",
                    retry_after=5,
                )
            self._prompts += 1
            key: Key = (document, read_chunks, None if document else self._prompts)
            first = key not in self._waiting
            self._waiting.setdefault(key, []).extend(rows)
            self.metrics.waiting.set(waiting + len(rows))
            if first and key not in self._running:
                self._running[key] = []
                self._workers.submit(self._serve, key)

    def _serve(self, key: Key) -> None:
        """Generate one batch; if others wait for this document by then, they are next when other documents had their
        turn.
        """
        if key[0] is not None and self.settings.batch_wait:
            time.sleep(self.settings.batch_wait)
        with self._lock:
            waiting = self._waiting.pop(key, [])
            taken, rest = waiting[: self.settings.batch_size], waiting[self.settings.batch_size :]
            if rest:
                self._waiting[key] = rest
            self.metrics.waiting.set(sum(map(len, self._waiting.values())))
            self._running[key] = rows = [row for row in taken if not row.cancelled.is_set()]
        _fail([row for row in taken if row not in rows], shutting_down())  # or nobody listens any more
        if rows:
            self._answer(rows, key)
        with self._lock:
            if key in self._waiting:
                self._workers.submit(self._serve, key)
            else:
                del self._running[key]

    def _answer(self, rows: Sequence[Row], key: Key) -> None:
        document, read_chunks, _ = key
        self.metrics.batch_rows.observe(len(rows))
        try:
            with self.documents.held(document) as (memory, end):
                batch.generate(self.model, rows, memory, end, read_chunks, self.pad)
        except ValueError as error:
            if len(rows) > 1 and not any(row.tokens for row in rows):  # one of them cannot be read
                for row in rows:
                    self._answer([row], key)
                return
            _fail(rows, ApiError(400, str(error)))
        except ApiError as error:
            _fail(rows, error)
        except BaseException as error:  # whoever waits for an answer shall hear of it
            self.metrics.failed.inc()
            _fail(rows, error)

    def chunk_attention(self, ids: list[int], document: str) -> list[float]:
        """The share of attention that each chunk of a document has from the end of a prompt."""
        with self.documents.held(document) as (memory, end):
            (shares,) = self.model.chunk_attention(torch.tensor([[*end, *ids]]), memory=memory)
        return list(shares.tolist())

    def close(self) -> None:
        """End: whoever is being answered gets what there is."""
        with self._lock:
            self._closed = True
            for rows in (*self._waiting.values(), *self._running.values()):
                for row in rows:
                    row.cancelled.set()
        while self._running:
            time.sleep(0.01)
        self._workers.shutdown(wait=True)
        self._kept.close()


def shutting_down() -> ApiError:
    return ApiError(503, "The server is shutting down; try another one.", code="shutting_down")


def _fail(rows: Sequence[Row], error: BaseException) -> None:
    for row in rows:
        row.send(error)
