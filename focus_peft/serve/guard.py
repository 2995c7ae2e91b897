"""What every request passes: who may ask, how much they may send, and what is noted of it."""

from __future__ import annotations

import json
import logging
import time
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .metrics import Metrics
from .settings import ServerSettings


logger = logging.getLogger("focus_peft.serve")
# What needs no key: whether the server lives
OPEN = {"/health"}
# Headers of a request that is longer than this are refused by uvicorn; an id of a client's is cut here
ID_SIZE = 64
# The status of a request whose client went away before there was an answer
NO_ANSWER = 499
# Browsers ask no other server for fonts, scripts or anything, whatever the page of gradio says
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class Guard:
    """ASGI middleware: `Host`, `Origin`, key and size are checked before anything is read, and each request gets an
    id, a line in the log and a place in the metrics.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.most_bytes = int(settings.max_upload_mb * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            await self._connect(scope, receive, send, headers)
            return
        given = headers.get("x-request-id", "")[:ID_SIZE]
        id = given if given.isascii() and given.isprintable() and given else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": id}
        start, status = time.perf_counter(), NO_ANSWER
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most_bytes:
                raise self._too_large()
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                ours = [(b"x-request-id", id.encode()), (b"content-security-policy", POLICY)]
                message["headers"] = [*message.get("headers", []), *ours]
            await send(message)

        try:
            self._check(scope["path"], headers)
            await self.app(scope, counted, answer)
        except ApiError as error:
            await error.response(scope, receive, answer)
        except Exception as error:
            if status != NO_ANSWER:  # half of the answer was sent: uvicorn cuts the connection
                raise
            logger.getChild("errors").exception("The request %s failed.", id)
            await ApiError(500, f"The request failed: {type(error).__name__}.").response(scope, receive, answer)
        finally:
            seconds = round(time.perf_counter() - start, 4)
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(scope["method"], route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            line = {"request": id, "method": scope["method"], "path": route, "status": status, "seconds": seconds}
            logger.info(json.dumps(line))

    async def _connect(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        """A WebSocket, for which there is no answer but to close it."""
        try:
            self._check(scope["path"], headers)
        except ApiError as error:
            await send({"type": "websocket.close", "code": 1008, "reason": error.detail})
            return
        await self.app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        settings = self.settings
        if not settings.admits_host(headers.get("host", "")):
            raise ApiError(421, "`Host` names another server; address this one by its name.", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and not settings.admits_origin(origin):
            raise ApiError(403, "`Origin` is another site's page, which may not use this server.", code="wrong_origin")
        if path not in OPEN and not settings.admits_key(headers.get("authorization")):
            raise ApiError(
                401, "The API key is missing or wrong; send it as `Authorization: Bearer`.", code="invalid_api_key"
            )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.most_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        most = self.settings.max_upload_mb
        return ApiError(413, f"The request is larger than {most:g} MiB; send less at once.", code="too_large")
