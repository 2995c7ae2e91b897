"""The page: its parts, and what happens when one of them is used."""

from __future__ import annotations

import html
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ...memory.text import decode_text
from ...tasks.needle import QUESTION, haystack
from ..engine import Engine
from ..errors import ApiError
from ..prompts import Prompts
from .chunk_strip import strip
from .session import Reading, Session
from .text import speed, summary


# Tabs that read or ask at once, others wait: each takes one of 40 threads, which the server's routes need too
BUSY_TABS = 16
PROGRESS = gr.Progress()  # as a default, what gradio knows it by
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


class Page:
    """The parts of the page and their handlers. Each tab of a browser has a document of its own.

    Args:
        engine (`Engine`): Answers, and has the documents.
        prompts (`Prompts`): Makes tokens of questions.
    """

    def __init__(self, engine: Engine, prompts: Prompts) -> None:
        self.engine, self.prompts = engine, prompts
        self.sessions: dict[str | None, Session] = {}
        self._uploads = tempfile.TemporaryDirectory(prefix="focus-uploads-")
        os.environ["GRADIO_TEMP_DIR"] = self._uploads.name  # read here and in `mount`
        self.local = engine.model.settings().sizes.local
        with gr.Blocks(title="focus_peft", analytics_enabled=False) as self.blocks:
            self._add_document()
            self._add_answers()
            self._add_chunks()
            self._connect()

    def mount(self, app: FastAPI) -> None:
        """Let an app answer with the page whatever it has no route for."""
        system = ["system-ui", "sans-serif"]
        gr.mount_gradio_app(
            app,
            self.blocks.queue(),
            path="/",
            ssr_mode=False,
            max_file_size=int(self.engine.settings.max_upload_mb * 2**20),
            footer_links=[],
            theme=gr.themes.Default(primary_hue="indigo", font=system, font_mono=["ui-monospace", "monospace"]),
            css=CSS,
        )
        self._gradio: Any = app.routes[-1]

    def hang_up(self) -> None:
        """End the streams by which tabs are known to be open."""
        self._gradio.app.stop_event.set()

    def close(self) -> None:
        """Delete what tabs have read, and what was uploaded to be read."""
        for key in list(self.sessions):
            self._forget(key)
        self._uploads.cleanup()

    def _forget(self, key: str | None) -> None:
        session = self.sessions.pop(key, None)
        if session is not None:
            session.forget()

    def _session(self, request: gr.Request) -> Session:
        """The session of the tab that a request comes from."""
        return self.sessions.setdefault(request.session_hash, Session(self.engine, self.prompts))

    def _add_document(self) -> None:
        gr.Markdown(
            "# Ask a long document\n"
            f"A frozen model with a window of {self.local} tokens ({self.engine.settings.name}) answers three times: "
            "alone, with the end of the document; with the adapter, which lets it look into all of it; and reading in "
            "full what it looks at most. The document is read once."
        )
        with gr.Row(equal_height=True):
            self.file = gr.File(label="A text file (UTF-8)", height=160, scale=2, min_width=280)
            with gr.Column(scale=1, min_width=220):
                gr.Markdown("A text of your own, or the Python reference with a sentence hidden in it:")
                self.read_file = gr.Button("Read this file", variant="primary")
                self.read_example = gr.Button("Read the example")
        nothing = "<p>Nothing was read yet.</p>"
        self.about = gr.HTML(nothing, html_template=STATUS, elem_id="about", elem_classes="said")

    def _add_answers(self) -> None:
        with gr.Row(elem_classes="question"):
            self.question = gr.Textbox(label="Question", value=QUESTION, lines=1, scale=5, min_width=280)
            self.ask = gr.Button("Ask", variant="primary", scale=1, min_width=100)
        answer: dict[str, Any] = {"lines": 3, "min_width": 280, "interactive": False}
        with gr.Row(equal_height=True):
            self.alone = gr.Textbox(label=f"The model alone, with the last {self.local} tokens", **answer)
            self.adapter = gr.Textbox(label="With the adapter, all tokens", **answer)
            read = self.engine.settings.read_chunks or 1
            chunks = "the chunk" if read == 1 else f"the {read} chunks"
            self.in_full = gr.Textbox(label=f"Reading {chunks} in full that it looks at most", **answer)
        self.speed = gr.HTML(html_template=STATUS, elem_classes="said")

    def _add_chunks(self) -> None:
        with gr.Column(visible=False) as self.attention:
            self.chunks = gr.HTML(js_on_load=PICK)
            label = "Chunk (click a cell, or use the arrow keys)"
            self.chosen = gr.Slider(1, 2, 1, step=1, label=label, interactive=True)
            self.text = gr.Textbox(label="Text of this chunk", lines=8, max_lines=8, interactive=False)

    def _connect(self) -> None:
        answers = [self.alone, self.adapter, self.in_full, self.speed, self.chunks, self.chosen, self.text]
        shown = [self.file, self.about, self.question, self.attention, *answers]
        queued: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": BUSY_TABS}
        queued["api_visibility"] = "private"
        light: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for button, read, inputs in (
            (self.read_file, self.on_file, [self.file, self.question]),
            (self.read_example, self.on_example, None),
        ):
            started = button.click(lambda: ("", ""), None, [self.about, self.speed], **light)
            started.then(read, inputs, shown, show_progress_on=self.about, **queued)
        asked = [self.ask.click, self.question.submit]
        gr.on(asked, self.on_ask, self.question, answers, show_progress="hidden", **queued)
        self.chosen.change(self.on_chosen, self.chosen, self.text, trigger_mode="always_last", **light)
        self.chunks.select(self.on_cell, None, self.chosen, **light)
        self.blocks.unload(self.on_unload)

    # What happens

    def on_file(
        self, path: str | None, asked: str, request: gr.Request, progress: gr.Progress = PROGRESS
    ) -> dict[Any, Any]:
        if path is None:
            return {self.about: problem("Choose a text file first, or take the example.")}
        file, taken = Path(path), {}
        data = file.read_bytes()
        if Path(self._uploads.name) in file.parents:
            shutil.rmtree(file.parent)  # each is in a folder of its own
            taken = {self.file: None}
        try:
            text = decode_text(data, f"The file {file.name}")
        except ValueError as error:
            return {self.about: problem(error), **taken}
        session, question = self._session(request), "" if asked == QUESTION else asked
        return {**self._shown(lambda: session.read(file.name, text, None, bar(progress)), question), **taken}

    def on_example(self, request: gr.Request, progress: gr.Progress = PROGRESS) -> dict[Any, Any]:
        session, name = self._session(request), "The Python reference"
        text, number = haystack(self.engine.tokenizer, self.engine.settings.example_tokens, seed=0)
        return self._shown(lambda: session.read(name, text, number, bar(progress)), QUESTION)

    def _shown(self, read: Callable[[], Reading], question: str) -> dict[Any, Any]:
        try:
            reading = read()
        except (ApiError, ValueError) as error:
            return {self.about: problem(error)}
        chunks = reading.chunks
        return {
            self.about: summary(reading, self.local),
            self.question: question,
            self.attention: gr.Column(visible=bool(chunks)),
            self.chunks: strip(None, chunks, reading.number),
            self.chosen: gr.Slider(value=1, maximum=max(2, len(chunks))),
            self.text: chunks[0] if chunks else "",
            **dict.fromkeys([self.alone, self.adapter, self.in_full, self.speed], ""),
        }

    def on_ask(self, asked: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield {self.alone: "", self.adapter: "", self.in_full: "", self.speed: "<p>Answering …</p>"}
        session = self._session(request)
        reading = session.reading
        try:
            for reply in session.ask(asked):
                yield {
                    self.alone: reply.alone.text,
                    self.adapter: reply.adapter.text,
                    self.in_full: reply.in_full.text,
                }
        except (ApiError, ValueError) as error:
            yield {self.speed: problem(error)}
            return
        assert reading is not None  # something was answered about it
        found: dict[Any, Any] = {self.speed: speed(reading, reply)}
        if reply.shares:
            most = max(range(len(reply.shares)), key=reply.shares.__getitem__)
            found[self.chunks] = strip(reply.shares, reading.chunks, reading.number)
            found |= {self.chosen: most + 1, self.text: reading.chunks[most]}
        yield found

    def on_chosen(self, index: int, request: gr.Request) -> str:
        reading = self._session(request).reading
        chunks = [] if reading is None else reading.chunks
        return chunks[min(int(index), len(chunks)) - 1] if chunks else ""

    def on_cell(self, event: gr.EventData) -> int:
        return int(event.chunk)

    def on_unload(self, request: gr.Request) -> None:
        self._forget(request.session_hash)


def bar(progress: Any) -> Callable[[float], None]:
    """What draws a share of the document on gradio's progress bar."""
    return lambda share: progress(share, desc="Reading")


def problem(error: object) -> str:
    """An error as a sentence on the page."""
    return f'<p class="problem" role="alert">{html.escape(str(error))}</p>'
