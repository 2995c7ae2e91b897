"""The server's page: each tab has a document of the server's, its questions go with those of clients, and errors are
sentences.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from conftest import make_focus_model, make_tiny_tokenizer
from starlette.testclient import TestClient
from test_server import listening, memory_and_end

from focus_peft.serve import Server, ServerSettings, batch
from focus_peft.serve.guard import POLICY


pytest.importorskip("gradio")

from focus_peft.serve.page.chunk_strip import strip
from focus_peft.serve.page.page import Page
from focus_peft.serve.page.session import Reading, Session
from focus_peft.serve.page.text import summary
from focus_peft.tasks.needle import haystack, question_text


LOCAL, CHUNK = 128, 32
QUESTION = "Who is it?"
TEXT = "\n".join(f"Line {number} of the book, über alles." for number in range(30))


@pytest.fixture(scope="module")
def model() -> Any:
    base = {"vocab_size": 259, "max_position_embeddings": 4096}
    return make_focus_model(base=base, chunk_size=CHUNK, local_size=LOCAL, prompt_size=16)


@contextlib.contextmanager
def made(model: Any, **fields: Any) -> Iterator[Server]:
    """A server with a page, that does not listen."""
    settings = ServerSettings(name="tiny", page=True, max_tokens=6, example_tokens=2000, **fields)
    server = Server(model, make_tiny_tokenizer(), settings)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(model: Any) -> Iterator[Server]:
    with made(model) as server:
        yield server


@pytest.fixture
def page(server: Server) -> Page:
    return server.page


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    session = Session(server.engine, server.prompts)
    yield session
    session.forget()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "book <1>.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def ignore(share: float, desc: str = "") -> None:
    pass


def tab(name: str) -> Any:
    """A request of the tab of that name."""
    return SimpleNamespace(session_hash=name)


def read(session: Session, text: str = TEXT) -> Reading:
    return session.read("book", text, None, ignore)


def ids_of(session: Session, question: str = QUESTION) -> list[int]:
    return session.prompts.of_text(question_text(question), begins=False)


def line(session: Session, sequence: torch.Tensor, prompt: int) -> str:
    """The first line behind the prompt."""
    text = session.engine.tokenizer.decode(sequence[0, prompt:], skip_special_tokens=True)
    return str(text).partition("\n")[0].strip()


# A tab's document and questions


def test_a_document_is_read_once_and_asked_many_times(session: Session, model: Any) -> None:
    shares: list[float] = []
    reading = session.read("book", TEXT, None, shares.append)
    assert shares == sorted(shares) and reading.document in session.documents.list()
    held, end = memory_and_end(session.engine.tokenizer(TEXT).input_ids, LOCAL)
    told = session.engine.tokenizer.decode(held).strip("\ufffd").replace("ü", "")
    assert "".join(reading.chunks).replace("ü", "") == told  # a chunk may end between its two bytes

    first = [*session.ask(QUESTION)][-1]
    [*session.ask("And where?")]
    assert [*session.ask(f"  {QUESTION}\n")][-1].shares == first.shares

    ids, memory = torch.tensor([end + ids_of(session)]), model.encode(held)
    assert first.shares == model.chunk_attention(ids, memory=memory)[0].tolist()
    for found, options in ((first.adapter, {}), (first.in_full, {"read_chunks": 1})):
        output = model.generate(ids, memory=memory, max_new_tokens=6, do_sample=False, **options)
        assert found.text == line(session, output, ids.shape[1]) and found.rate > 0
    (scores,) = model.chunk_scores(ids, memory=memory)
    assert first.in_full.read == [int(scores.argmax())] and first.adapter.read == []


def test_the_model_alone_is_the_base_model_with_the_end_of_the_document(session: Session, model: Any) -> None:
    reading = read(session)
    ids = torch.tensor([(reading.end + ids_of(session))[-LOCAL:]])
    with model.disable_adapter():
        output = model.get_base_model().generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    *growing, last = (reply.alone for reply in session.ask(QUESTION))
    assert last.text == line(session, output, LOCAL)
    assert all(last.text.startswith(answer.text) for answer in growing)


def test_a_long_answer_of_the_model_alone_never_becomes_a_chunk(model: Any) -> None:
    with made(model) as server:
        server.settings.max_tokens = 100
        session = Session(server.engine, server.prompts)
        ids = (read(session).end + ids_of(session))[-LOCAL:]
        pieces = [*session._answers(ids, None, None)]
        with model.disable_adapter():
            output = model.get_base_model().generate(
                input_ids=torch.tensor([ids]), max_new_tokens=CHUNK, do_sample=False
            )
        assert pieces[-1].text == line(session, output, LOCAL)


def test_a_short_document_is_read_by_the_base_model_alone(session: Session) -> None:
    reading = read(session, "A short note.")
    assert reading.chunks == [] and "fit the local window" in summary(reading, LOCAL)
    reply = [*session.ask(QUESTION)][-1]
    assert reply.shares == []
    assert reply.adapter.text == reply.in_full.text == reply.alone.text


def test_questions_of_the_page_and_of_clients_are_answered_together(model: Any) -> None:
    with made(model, batch_wait=1.0) as server:
        session = Session(server.engine, server.prompts)
        document = read(session).document.id
        alone = [*session.ask(QUESTION)][-1].adapter.text
        together = server.metrics.batch_rows._buckets[1]  # those of two
        before = together.get()
        client = TestClient(server.app, base_url="http://127.0.0.1")
        prompt = question_text(QUESTION)
        body = {"model": "tiny", "document": document, "prompt": prompt, "temperature": 0, "stop": "\n"}
        with ThreadPoolExecutor(2) as pool:
            api = pool.submit(client.post, "/v1/completions", json=body)
            ours = pool.submit(lambda: [*session._answers(ids_of(session), document, None)][-1].text)
            assert ours.result() == api.result().json()["choices"][0]["text"].strip() == alone
        assert together.get() == before + 1


def test_a_question_that_nobody_waits_for_is_not_answered_any_more(session: Session) -> None:
    read(session)
    expected = [*session.ask(QUESTION)][-1]
    abandoned = session.ask(QUESTION)
    next(abandoned)
    abandoned.close()
    again = [*session.ask(QUESTION)][-1]
    assert (again.adapter.text, again.shares) == (expected.adapter.text, expected.shares)


def test_an_error_of_the_model_reaches_whoever_waits_for_the_answer(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("out of memory")

    read(session)
    monkeypatch.setattr(batch, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(session.ask(QUESTION))


def test_what_cannot_be_asked_is_said_in_a_sentence(session: Session) -> None:
    with pytest.raises(ValueError, match="Read a document first"):
        next(session.ask(QUESTION))
    read(session)
    with pytest.raises(ValueError, match="Write a question first"):
        next(session.ask("  \n"))
    with pytest.raises(ValueError, match=f"there is room for {LOCAL // 2}; ask a shorter one"):
        next(session.ask("why " * 40))


# The strip of chunks


class Cells(HTMLParser):
    """The attributes of the cells of a strip, and the label of the whole."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[dict[str, str | None]] = []
        self.label: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.label = given.get("aria-label", self.label)
        if tag == "span":
            self.cells.append(given)


def test_the_strip_has_a_cell_for_each_chunk_and_says_the_same_in_words() -> None:
    texts = ['One\n "quoted" <b>', "Two: 12345", "Three"]
    parsed = Cells(strip([0.1, 0.4, 0.0], texts, "12345"))
    assert [cell["style"] for cell in parsed.cells] == ["--shade:0.250", "--shade:1.000", "--shade:0.000"]
    assert [cell["data-chunk"] for cell in parsed.cells] == ["1", "2", "3"]
    assert parsed.cells[0]["title"] == 'Chunk 1 (10.0% of the attention): One "quoted" <b> …'
    assert [cell["class"] for cell in parsed.cells] == ["chunk", "chunk holds", "chunk"]
    assert parsed.label is not None
    assert "Most: 2 (40.0%), 1 (10.0%), 3 (0.0%); 50% of the attention went to the local window." in parsed.label
    assert "around chunk 2" in parsed.label


def test_before_a_question_all_cells_are_alike() -> None:
    parsed = Cells(strip(None, ["one", "two"]))
    assert [cell["style"] for cell in parsed.cells] == ["--shade:0.000"] * 2
    assert parsed.cells[0]["title"] == "Chunk 1: one …"
    assert strip(None, []) == ""


# The page's handlers


def test_the_page_shows_what_was_read_and_answered(page: Page, book: Path) -> None:
    here = tab("shown")
    shown: dict[Any, Any] = page.on_file(str(book), "Who?", here, ignore)
    session = page.sessions["shown"]
    assert session.reading is not None
    texts = session.reading.chunks
    assert len(texts) > 1 and shown[page.text] == texts[0] and shown[page.question] == "Who?"
    assert "book &lt;1&gt;.txt" in shown[page.about]  # no markup
    assert page.file not in shown and book.exists()  # it was not uploaded
    *_, whole, last = page.on_ask(QUESTION, here)
    reply = [*session.ask(QUESTION)][-1]
    assert whole == {
        page.alone: reply.alone.text,
        page.adapter: reply.adapter.text,
        page.in_full: reply.in_full.text,
    }
    (number,) = reply.in_full.read
    assert f"tokens/s with chunk {number + 1} in full" in last[page.speed]
    assert last[page.text] == texts[last[page.chosen] - 1] == page.on_chosen(last[page.chosen], here)
    assert "Write a question" in [*page.on_ask("", here)][-1][page.speed]
    assert page.on_chosen(1, tab("nothing read")) == ""
    page.on_unload(here)


def test_the_example_hides_its_number_and_says_so(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focus_peft.tasks.needle.topics", dict(sorted(topics.items())[:9]))  # which are cut sooner
    shown = page.on_example(tab("example"), ignore)
    text, number = haystack(page.engine.tokenizer, 2000, 0)
    reading = page.sessions["example"].reading
    assert reading is not None and page.engine.documents.text(reading.document.id) == text and number in text
    assert f"is {number}." in shown[page.about] and "chunk holds" in shown[page.chunks]
    assert f"The hidden number is {number}" in [*page.on_ask(QUESTION, tab("example"))][-1][page.speed]
    page.on_unload(tab("example"))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "Choose a text file first, or take the example."),
        (b" \n ", "The file given.txt is empty; give a document with some text in it."),
        (b"\x00\x01", "The file given.txt is not text; it contains NUL characters."),
        (b"\x89PNG\r\n", "The file given.txt is not UTF-8 text: "),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence_and_the_old_document_stays(
    page: Page, book: Path, tmp_path: Path, data: bytes | None, sentence: str
) -> None:
    page.on_file(str(book), "", tab("old"), ignore)
    file = tmp_path / "given.txt"
    if data is not None:
        file.write_bytes(data)
    shown = page.on_file(None if data is None else str(file), "", tab("old"), ignore)
    assert list(shown) == [page.about] and sentence in shown[page.about]
    reading = page.sessions["old"].reading
    assert reading is not None and reading.document.name == book.name
    page.on_unload(tab("old"))


def test_each_tab_has_its_document_which_goes_with_it(model: Any, book: Path, tmp_path: Path) -> None:
    def names() -> list[str]:
        return sorted(document.name for document in server.documents.list())

    other = tmp_path / "other.txt"
    other.write_text("Something else. " * 30)
    with made(model, documents=tmp_path / "kept") as server:
        page = server.page
        for key, file in (("a", book), ("b", other), ("c", other)):
            page.on_file(str(file), "", tab(key), ignore)
        assert names() == [book.name, other.name, other.name]
        assert page.on_chosen(1, tab("a")) != page.on_chosen(1, tab("b"))
        page.on_file(str(other), "", tab("a"), ignore)  # in place of the book
        assert names() == [other.name] * 3
        page.on_unload(tab("b"))
        assert names() == [other.name] * 2
        server.documents.delete(page.sessions["c"].reading.document.id)  # as a client may
        assert "There is no file" in [*page.on_ask(QUESTION, tab("c"))][-1][page.speed]
        page.on_file(str(book), "", tab("c"), ignore)
    assert not [*(tmp_path / "kept").iterdir()]  # the page's go with the server


# The page as it is served


@pytest.mark.slow
def test_the_page_is_served_beside_the_api_and_guarded_like_it(model: Any, tmp_path: Path, book: Path) -> None:
    with (
        made(model) as server,
        listening(server) as address,
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        answer = client.get("/")
        assert answer.status_code == 200 and "Ask a long document" in answer.text
        assert answer.headers["content-security-policy"].encode() == POLICY
        assert server.page.blocks.analytics_enabled is False
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/upload"), ("OPTIONS", "/config")):
            for header, status in (({"Origin": "http://evil.example"}, 403), ({"Host": "evil.example"}, 421)):
                answer = client.request(method, path, headers={**header, "Access-Control-Request-Method": "POST"})
                assert answer.status_code == status and "Ask a long" not in answer.text, (method, path, header)
                assert not [name for name in answer.headers if name.startswith("access-control-")]

        uploads = Path(server.page._uploads.name)
        for content in (book.read_bytes(), b"\0 no text"):
            (path,) = client.post("/gradio_api/upload", files={"files": ("book.txt", content)}).json()
            assert Path(path).is_relative_to(uploads) and Path(path).read_bytes() == content
            shown = server.page.on_file(path, "Who?", tab("a"), ignore)
            assert shown[server.page.file] is None
            assert not [file for file in uploads.rglob("*") if file.is_file()]

        id = server.page.sessions["a"].reading.document.id
        assert client.get(f"/v1/files/{id}").status_code == 200
        with client.stream("GET", "/gradio_api/heartbeat/a") as stream:
            next(stream.iter_lines())
        start = time.monotonic()  # the tab was closed
        while client.get(f"/v1/files/{id}").status_code == 200:
            assert time.monotonic() - start < 30
            time.sleep(0.05)
    assert not uploads.exists()


def test_sockets_of_other_sites_are_closed(server: Server) -> None:
    def messages(origin: bytes) -> list[str]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"127.0.0.1"), (b"origin", origin)]
        scope = {"type": "websocket", "path": "/", "headers": headers, "query_string": b"", "root_path": ""}
        asyncio.run(server.app({**scope, "subprotocols": []}, receive, send))
        return [message.get("reason", "") for message in sent]

    assert any("another site's page" in reason for reason in messages(b"http://evil.example"))
    assert not any("another site's page" in reason for reason in messages(b"http://127.0.0.1"))


def test_the_page_is_for_this_machine_only() -> None:
    for fields in ({"api_key": "k"}, {"host": "0.0.0.0"}, {"host": "0.0.0.0", "api_key": "k"}):
        with pytest.raises(ValueError, match="`page` is for browsers on this machine, .*; leave out the key"):
            ServerSettings(name="x", page=True, **fields)  # type: ignore[arg-type]
