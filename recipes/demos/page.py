"""The demo's page: its parts, and what happens when one of them is used."""

from __future__ import annotations

import html
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from demos.chunk_strip import html_strip
from demos.page_text import speed, summary
from demos.questions import QUESTION
from demos.session import DocumentSession, SessionError


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
    """The parts of the page and their handlers.

    Args:
        session (`DocumentSession`): What reads and answers.
        uploads (`Path`, *optional*): Where files that are given come to; they are removed when they have been read.
            None: files are left where they are.
    """

    def __init__(self, session: DocumentSession, uploads: Path | None = None) -> None:
        self.session, self.uploads = session, uploads
        with gr.Blocks(title="focus_peft", analytics_enabled=False) as self.blocks:
            self._add_document()
            self._add_answers()
            self._add_chunks()
            self._connect()

    def _add_document(self) -> None:
        self.key = gr.State(None)  # the number of the document, not its memory, which nobody should copy
        gr.Markdown(
            "# Ask a long document\n"
            f"A frozen model with a window of {self.session.local} tokens, SmolLM2-135M-Instruct, answers three "
            "times: alone, with the end of the document; with the adapter, which lets it look into all of it; and "
            "reading in full what it looks at most. The document is read once."
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
            self.alone = gr.Textbox(label=f"The model alone, with the last {self.session.local} tokens", **answer)
            self.adapter = gr.Textbox(label="With the adapter, all tokens", **answer)
            read = self.session.read_chunks
            chunks = "the chunk" if read == 1 else f"the {read} chunks"
            self.reading = gr.Textbox(label=f"Reading {chunks} in full that it looks at most", **answer)
        self.speed = gr.HTML(html_template=STATUS, elem_classes="said")

    def _add_chunks(self) -> None:
        with gr.Column(visible=False) as self.attention:
            self.chunks = gr.HTML(js_on_load=PICK)
            label = "Chunk (click a cell, or use the arrow keys)"
            self.chosen = gr.Slider(1, 2, 1, step=1, label=label, interactive=True)
            self.text = gr.Textbox(label="Text of this chunk", lines=8, max_lines=8, interactive=False)

    def _connect(self) -> None:
        answers = [self.alone, self.adapter, self.reading, self.speed, self.chunks, self.chosen, self.text]
        shown = [self.file, self.key, self.about, self.question, self.attention, *answers]
        # one model: whatever needs it waits in one queue
        queued: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        light: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for button, read, inputs in (
            (self.read_file, self.on_file, [self.file, self.question]),
            (self.read_example, self.on_example, None),
        ):
            started = button.click(lambda: ("", ""), None, [self.about, self.speed], **light)
            started.then(read, inputs, shown, show_progress_on=self.about, **queued)
        asked = [self.key, self.question]
        gr.on([self.ask.click, self.question.submit], self.on_ask, asked, answers, show_progress="hidden", **queued)
        self.chosen.change(self.on_chosen, [self.key, self.chosen], self.text, trigger_mode="always_last", **light)
        self.chunks.select(self.on_cell, None, self.chosen, **light)

    def on_file(self, path: str | None, asked: str, progress: gr.Progress = PROGRESS) -> dict[Any, Any]:
        question = "" if asked == QUESTION else asked
        shown = self._shown(lambda: self.session.read_file(path, bar(progress)), question)
        if path is not None and self.uploads is not None and self.uploads in Path(path).parents:
            shutil.rmtree(Path(path).parent)  # each is in a folder of its own
            shown[self.file] = None
        return shown

    def on_example(self, progress: gr.Progress = PROGRESS) -> dict[Any, Any]:
        return self._shown(lambda: self.session.read_example(bar(progress)), QUESTION)

    def _shown(self, read: Callable[[], int], question: str) -> dict[Any, Any]:
        try:
            number = read()
        except (SessionError, ValueError) as error:
            return {self.about: problem(error)}
        document = self.session.held(number)
        texts = self.session.chunk_texts(document)
        return {
            self.key: number,
            self.about: summary(document, self.session.local),
            self.question: question,
            self.attention: gr.Column(visible=bool(texts)),
            self.chunks: html_strip(None, texts, document.number),
            self.chosen: gr.Slider(value=1, maximum=max(2, len(texts))),
            self.text: texts[0] if texts else "",
            **dict.fromkeys([self.alone, self.adapter, self.reading, self.speed], ""),
        }

    def on_ask(self, number: int | None, asked: str) -> Iterator[dict[Any, Any]]:
        yield {self.alone: "", self.adapter: "", self.reading: "", self.speed: "<p>Answering …</p>"}
        try:
            for reply in self.session.ask(number, asked):
                yield {
                    self.alone: reply.alone.text,
                    self.adapter: reply.adapter.text,
                    self.reading: reply.reading.text,
                }
            document = self.session.held(number)
        except (SessionError, ValueError) as error:
            yield {self.speed: problem(error)}
            return
        found: dict[Any, Any] = {self.speed: speed(document, reply)}
        if reply.shares:
            texts = self.session.chunk_texts(document)
            most = max(range(len(texts)), key=reply.shares.__getitem__)
            found[self.chunks] = html_strip(reply.shares, texts, document.number)
            found |= {self.chosen: most + 1, self.text: texts[most]}
        yield found

    def on_chosen(self, number: int | None, index: int) -> str:
        try:
            texts = self.session.chunk_texts(self.session.held(number))
        except SessionError as error:
            return str(error)
        return texts[min(int(index), len(texts)) - 1] if texts else ""

    def on_cell(self, event: gr.EventData) -> int:
        chunk: int = event.chunk
        return chunk


def bar(progress: Any) -> Callable[[float], None]:
    """What draws a share of the document on gradio's progress bar."""
    progress(0, desc="Counting the tokens")
    return lambda share: progress(share, desc="Reading")


def problem(error: Exception) -> str:
    """An error as a sentence on the page."""
    return f'<p class="problem" role="alert">{html.escape(str(error))}</p>'
