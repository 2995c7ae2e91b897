"""Several machines: replicas of the server, each with documents of its own, behind one address (Ray Serve).

    pip install 'ray[serve]'
    serve run --app-dir recipes/serving ray_serve:app replicas=2 \\
        options="--model … --adapter … --documents /shared/documents --api-key-file /shared/key"

`options` are those of `focus-peft serve`. Where to listen is Ray's to say, so `--host` and `--port` have no effect.
"""

# No `from __future__ import annotations`: Ray looks at the type of what `app` takes

import asyncio
import itertools
import json
import logging
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, Field
from ray import cloudpickle, serve
from ray.exceptions import RayActorError
from ray.serve import Application
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Scope

from focus_peft.cli.main import build_parser
from focus_peft.cli.serve import GRACE, load_served, settings_of
from focus_peft.serve import Server, ServerSettings
from focus_peft.serve.errors import ApiError
from focus_peft.serve.guard import Guard
from focus_peft.serve.metrics import Metrics


UNLIMITED = 1_000_000  # Ray hands every request on at once: the server's own queue has the limit
ID = b"x-request-id"
# What of a request goes to the replica, beside its headers and body
TOLD = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")


class Replica:
    """A server with a model and documents of its own."""

    def __init__(self, args: Namespace, settings: ServerSettings) -> None:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("focus_peft.serve").setLevel(logging.INFO)
        self.server = Server(*load_served(args), settings)

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """What the server sends. When nobody listens any more, it hears that the client went away."""
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        received, gone = iter([{"type": "http.request", "body": body}]), asyncio.Event()

        async def receive() -> Message:
            for message in received:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        running = asyncio.create_task(self.server.app(scope, receive, sent.put))
        running.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            while (message := await sent.get()) is not None:
                yield message
        finally:
            gone.set()
            await asyncio.wait([running])

    async def files(self) -> list[dict[str, Any]]:
        return (await self.server.files())["data"]

    def __del__(self) -> None:  # Ray calls it when a replica shall end
        if hasattr(self, "server"):
            self.server.close()


class Front:
    """Hands requests about a document to the replica that has it, and others to each replica in turn."""

    def __init__(self, settings: ServerSettings, names: list[str]) -> None:
        self.replicas = {name: serve.get_deployment_handle(name) for name in names}
        self.turns = itertools.cycle(names)
        self.owners: dict[str, str] = {}  # of documents; who is not here is found by asking
        paths = ("/v1/{path:path}", "/health", "/metrics")
        every = [Route(path, self.forward, methods=["GET", "POST", "DELETE"]) for path in paths]
        self.app = Starlette(
            routes=[Route("/v1/files", self.files, methods=["GET"]), *every],
            middleware=[Middleware(Guard, settings=settings, metrics=Metrics())],
            exception_handlers={RayActorError: lost},
        )

    async def files(self, request: Request) -> Response:
        """The documents of all replicas."""
        found = itertools.chain(*await asyncio.gather(*map(self._files, self.replicas)))
        files = sorted(found, key=lambda file: -file["created_at"])
        return JSONResponse({"object": "list", "data": files, "has_more": False})

    async def _files(self, name: str) -> list[dict[str, Any]]:
        files = await self.replicas[name].files.remote()
        self.owners.update((file["id"], name) for file in files)
        return files

    async def forward(self, request: Request) -> Response:
        body = await request.body()
        scope: Scope = {key: request.scope[key] for key in TOLD}
        headers = [pair for pair in request.headers.raw if pair[0] != ID]
        scope["headers"] = [*headers, (ID, request.state.request_id.encode())]
        name = await self._name(request, body)
        messages = aiter(self.replicas[name].options(stream=True).answer.remote(scope, body))
        start = await anext(messages)
        answer = StreamingResponse(bodies(messages), start["status"])
        answer.raw_headers = [pair for pair in start["headers"] if pair[0] != ID]  # the guard tells it
        return answer

    async def _name(self, request: Request, body: bytes) -> str:
        """The replica that a request is for."""
        if wanted := request.query_params.get("replica"):
            if wanted not in self.replicas:
                raise ApiError(404, f"`replica` is {wanted!r}; there are {', '.join(self.replicas)}.", "replica")
            return wanted
        id = document_of(request.url.path, body)
        if id is not None and id not in self.owners:
            for asked in asyncio.as_completed(map(self._files, self.replicas)):
                await asked
                if id in self.owners:
                    break
        return self.owners.get(id or "") or next(self.turns)


async def bodies(messages: Any) -> AsyncIterator[bytes]:
    """What a replica sends. When nobody listens any more, it hears of it."""
    try:
        async for message in messages:
            yield message.get("body", b"")
    finally:
        messages.cancel()


def document_of(path: str, body: bytes) -> str | None:
    """The id of the document that a request is about."""
    if about := re.match(r"/v1/files/([^/]+)", path):
        return about[1]
    try:
        told = json.loads(body) if path.endswith("/completions") else {}
        named = told.get("document") or told["file_ids"][0]
    except (ValueError, LookupError, AttributeError, TypeError):  # it is about none, or is refused by any replica
        return None
    return named if isinstance(named, str) else None


async def lost(request: Request, error: Exception) -> Response:
    message = "A replica went away and will be back; try again."
    return ApiError(503, message, code="replica_lost", retry_after=10).response


class Arguments(BaseModel):
    """What `serve run` is told: options of `focus-peft serve`, how many replicas, and the GPUs that each needs."""

    options: str
    replicas: int = Field(default=2, ge=1)
    gpus: float = Field(default=0, ge=0)


def app(arguments: Arguments) -> Application:
    """A deployment for each replica, because each has a folder of its own, and one that listens."""
    args = build_parser().parse_args(["serve", *shlex.split(arguments.options)])
    settings = settings_of(args)
    if settings.api_key is None or settings.documents is None:
        raise ValueError(
            "`options` needs --api-key-file, as other machines can reach a cluster, and --documents, from which a "
            "replica that died comes back."
        )
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # other machines lack this file
    folder, names = settings.documents.resolve(), [f"replica-{number}" for number in range(arguments.replicas)]
    options: dict[str, Any] = {"max_ongoing_requests": UNLIMITED, "graceful_shutdown_timeout_s": GRACE}
    resources = {"num_gpus": arguments.gpus}
    replicas = [
        serve.deployment(Replica, name=name, ray_actor_options=resources, **options).bind(
            args, replace(settings, documents=folder / name)
        )
        for name in names
    ]

    def listening() -> Starlette:
        return Front(settings, names).app

    front = serve.deployment(serve.ingress(listening)(), name="front", ray_actor_options={"num_cpus": 0}, **options)
    return front.bind(*replicas)
