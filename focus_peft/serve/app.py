"""The server's routes: OpenAI's, `/health` and `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ..memory.text import decode_text
from . import answers
from .documents import Document, DocumentStore
from .engine import Engine
from .errors import ApiError
from .guard import Guard
from .metrics import Metrics
from .prompts import Prompts
from .requests import ChatRequest, CompletionRequest, Sampling
from .row import Piece, Row
from .settings import ServerSettings
from .text_stream import TextStream


# Seconds after which it is asked whether a client that waits is still there
PATIENCE = 0.5


class Server:
    """An app, and what it works with.

    Args:
        model (`PeftModel`): With the adapter. It is the server's from now on: `read_chunks` of its configuration goes
            to the server's settings.
        tokenizer: The model's.
        settings (`ServerSettings`): Sizes and limits.

    Attributes:
        app (`FastAPI`): For uvicorn, or any other ASGI server.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: ServerSettings) -> None:
        # what the adapter's configuration says is for requests that do not: in the model, one with 0 would get it too
        config = model.base_model.active_config
        settings = replace(settings, read_chunks=settings.read_chunks or config.read_chunks)
        config.read_chunks = None
        self.tokenizer, self.settings = tokenizer, settings
        self.metrics = Metrics()
        self.documents = DocumentStore(
            model, tokenizer, settings.documents, settings.memory_gb, settings.storage, self.metrics
        )
        self.engine = Engine(model, tokenizer, settings, self.documents, self.metrics)
        self.prompts = Prompts(model, tokenizer, settings)
        self.started = int(time.time())
        self.app = FastAPI(title="focus_peft", docs_url=None, redoc_url=None, lifespan=self._lifespan)
        self.app.add_middleware(Guard, settings=settings, metrics=self.metrics)
        self.app.add_exception_handler(ApiError, _told)
        self.app.add_exception_handler(RequestValidationError, _invalid)
        self._add_routes()
        self.page: Any = None
        if settings.page:
            from .page import Page  # gradio is not needed without

            self.page = Page(self.engine, self.prompts)
            self.page.mount(self.app)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(self.close)

    def close(self) -> None:
        """End what is still being answered, with what there is, and stop reading."""
        if self.page is not None:
            self.page.close()
        self.documents.close()
        self.engine.close()

    def hang_up(self) -> None:
        """End the streams of open pages, which never end by themselves."""
        if self.page is not None:
            self.page.hang_up()

    def _add_routes(self) -> None:
        add = self.app.add_api_route
        add("/health", self.health, methods=["GET"])
        add("/metrics", self.numbers, methods=["GET"])
        add("/v1/models", self.models, methods=["GET"])
        add("/v1/models/{name:path}", self.model_of, methods=["GET"])
        add("/v1/chat/completions", self.chat, methods=["POST"])
        add("/v1/completions", self.complete, methods=["POST"])
        add("/v1/files", self.upload, methods=["POST"])
        add("/v1/files", self.files, methods=["GET"])
        add("/v1/files/{id}", self.file, methods=["GET"])
        add("/v1/files/{id}", self.forget, methods=["DELETE"])
        add("/v1/files/{id}/content", self.content, methods=["GET"])

    # What the server says of itself

    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def numbers(self) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model()]}

    async def model_of(self, name: str) -> dict[str, Any]:
        if name != self.settings.name:
            raise ApiError(404, f"There is no model {name!r}; this server has {self.settings.name!r}.", "model")
        return self._model()

    def _model(self) -> dict[str, Any]:
        return {"id": self.settings.name, "object": "model", "created": self.started, "owned_by": "focus_peft"}

    # Documents

    async def upload(self, file: UploadFile, purpose: str = Form("user_data")) -> dict[str, Any]:
        try:
            text = decode_text(await file.read(), "`file`")
        except ValueError as error:
            raise ApiError(400, str(error), "file") from error
        return _file(await run_in_threadpool(self.documents.add, file.filename or "document", text))

    async def files(self) -> dict[str, Any]:
        return {"object": "list", "data": [_file(document) for document in self.documents.list()], "has_more": False}

    async def file(self, id: str) -> dict[str, Any]:
        return _file(self.documents.get(id))

    async def forget(self, id: str) -> dict[str, Any]:
        await run_in_threadpool(self.documents.delete, id)
        return {"id": id, "object": "file", "deleted": True}

    async def content(self, id: str) -> Response:
        return Response(await run_in_threadpool(self.documents.text, id), media_type="text/plain; charset=utf-8")

    # Answers

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        body.check(self.settings.name)
        ids = await run_in_threadpool(self.prompts.of_chat, body.texts())
        return await self._answer(body, ids, request, f"chatcmpl-{uuid.uuid4().hex}")

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        body.check(self.settings.name)
        ids = await run_in_threadpool(self.prompts.of_text, body.prompt, body.document_id is None)
        return await self._answer(body, ids, request, f"cmpl-{uuid.uuid4().hex}")

    async def _answer(self, body: Sampling, ids: list[int], request: Request, id: str) -> Response:
        document = None if body.document_id is None else self.documents.get(body.document_id)
        read = self.settings.read_chunks if body.read_chunks is None else body.read_chunks or None
        self.prompts.check(ids, body)
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

        def row(number: int) -> Row:
            seed = secrets.randbits(62) if body.seed is None else body.seed + number
            return Row(
                ids,
                self.prompts.sampled(body, seed),
                body.most_tokens or self.settings.max_tokens,
                TextStream(self.tokenizer, body.stop),
                self.settings.time_limit,
                lambda piece: loop.call_soon_threadsafe(queue.put_nowait, (number, piece)),
            )

        rows = [row(number) for number in range(body.n)]
        form = answers.Form(body, self.tokenizer, id, int(time.time()))
        if document is not None:
            await _until_read(document, request)
        total = len(ids) + (0 if document is None else document.tokens)
        self.engine.submit(rows, None if document is None else document.id, read)
        self.metrics.prompt_tokens.inc(total)
        pieces = self._pieces(rows, queue, request)
        if not body.stream:
            found: list[list[Piece]] = [[] for _ in rows]
            async for number, piece in pieces:
                found[number].append(piece)
            return JSONResponse(form.answer(found, total))
        first = await anext(pieces)  # what cannot be answered fails with a status of its own
        events = _events(first, pieces, form, total, body, rows)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _pieces(
        self, rows: Sequence[Row], queue: asyncio.Queue[tuple[int, Any]], request: Request
    ) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all answers as they come. When nobody listens any more, their generation ends."""
        start, unfinished, started = time.perf_counter(), len(rows), False
        try:
            while unfinished:
                try:
                    number, piece = await asyncio.wait_for(queue.get(), PATIENCE)
                except asyncio.TimeoutError:
                    if await request.is_disconnected():
                        raise gone() from None
                    continue
                if isinstance(piece, ApiError):
                    raise piece
                if isinstance(piece, BaseException):
                    raise ApiError(500, f"Answering failed: {type(piece).__name__}.") from piece
                if not started:
                    started = True
                    self.metrics.first_token.observe(time.perf_counter() - start)
                if piece.finish is not None:
                    unfinished -= 1
                    self.metrics.new_tokens.inc(piece.tokens)
                yield number, piece
        finally:
            for row in rows:
                row.cancelled.set()


def gone() -> ApiError:
    """Nobody will see it, but the log has its status."""
    return ApiError(499, "The client went away.")


async def _until_read(document: Document, request: Request) -> None:
    """Wait for a document that is being read, as long as the client does."""
    while not document.ready.is_set():
        await asyncio.sleep(PATIENCE / 10)
        if await request.is_disconnected():
            raise gone()
    document.check()


async def _events(
    first: tuple[int, Piece],
    pieces: AsyncIterator[tuple[int, Piece]],
    form: answers.Form,
    prompt_tokens: int,
    body: Sampling,
    rows: Sequence[Row],
) -> AsyncIterator[str]:
    """A stream of server-sent events."""
    lengths = [0] * len(rows)
    if form.chat:
        for number in range(len(rows)):
            yield form.first(number)
    one: tuple[int, Piece] | None = first
    try:
        while one is not None:
            number, piece = one
            if told := form.piece(number, piece, lengths[number]):
                yield told
            lengths[number] += len(piece.text)
            one = await anext(pieces, None)
    except ApiError as error:
        yield answers.event(error.body)
        return
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]
    if body.usage_wanted:
        yield form.used(prompt_tokens, [len(row.tokens) for row in rows])
    yield "data: [DONE]\n\n"


def _file(document: Document) -> dict[str, Any]:
    """A document, as OpenAI tells of files."""
    return {
        "id": document.id,
        "object": "file",
        "bytes": document.bytes,
        "created_at": document.created,
        "filename": document.name,
        "purpose": "user_data",
        "status": document.status,
        "status_details": document.problem,
        "progress": round(document.progress, 4),
        "tokens": document.tokens,
    }


def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response


def _invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request, as a sentence."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}.").response
    # what follows the field's name may be the type that was tried, which nobody gave
    field = next((str(part) for part in first["loc"][1:]), None)
    given = "" if first["type"] == "missing" else f", got {str(first.get('input'))[:80]!r}"
    return ApiError(400, f"`{field or 'body'}` cannot be used: {first['msg']}{given}.", field).response
