"""The page in Chromium, where playwright and a browser are there: what a user sees and clicks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any
from urllib.parse import urlsplit

import pytest


pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Error, expect, sync_playwright
from test_page import QUESTION, made, model
from test_server import listening


__all__ = ["model"]  # a fixture
pytestmark = pytest.mark.slow
INSTALLED = ("chromium", "chromium-headless-shell", "google-chrome")


@pytest.fixture
def browser() -> Iterator[Any]:
    with sync_playwright() as started:
        path = next((found for name in INSTALLED if (found := shutil.which(name))), None)
        try:
            browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"there is no browser: {error}")
        yield browser
        browser.close()


def test_a_tab_reads_asks_and_looks_at_chunks(model: Any, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focus_peft.tasks.needle.topics", dict(sorted(topics.items())[:9]))
    with made(model) as server, listening(server) as address:
        tab, problems, hosts = browser.new_page(), [], set()
        tab.set_default_timeout(60_000)
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        tab.goto(address)
        tab.get_by_role("button", name="Read the example").click()
        tab.get_by_text("The hidden sentence:").wait_for()
        (session,) = server.page.sessions.values()
        chunks = session.reading.chunks
        cells = tab.locator("[data-chunk]")
        assert cells.count() == len(chunks) > 3 and tab.locator(".chunk.holds").count() == 1

        tab.get_by_label("Question").fill(QUESTION)
        tab.get_by_role("button", name="Ask").click()
        tab.get_by_text("tokens/s alone").wait_for()
        reply = [*session.ask(QUESTION)][-1]
        for label, answer in (
            ("The model alone", reply.alone),
            ("With the adapter", reply.adapter),
            ("Reading the chunk in full", reply.in_full),
        ):
            assert tab.get_by_label(label).input_value() == answer.text
        most = max(range(len(chunks)), key=reply.shares.__getitem__)
        expect(cells.nth(most)).to_have_attribute("style", "--shade:1.000")
        text = tab.get_by_label("Text of this chunk")
        expect(text).to_have_value(chunks[most])
        cells.nth(2).click()
        expect(text).to_have_value(chunks[2])

        assert hosts - {""} == {urlsplit(address).netloc} and problems == []
        tab.close()
        start = time.monotonic()
        while server.documents.list():
            assert time.monotonic() - start < 60
            time.sleep(0.1)
