"""`focus-peft serve`: a document whose upload was answered outlives the process, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import save_base

from focus_peft.cli import main
from focus_peft.cli.serve import GRACE, listening


DOCUMENT = "The ferry leaves from pier four. " * 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_base(folder, max_position_embeddings=512)
    return folder


@contextlib.contextmanager
def command(base: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command at work, and its address."""
    words = [sys.executable, "-m", "focus_peft", "serve", "--model", str(base), "--port", "0", "--local-size", "32"]
    process = subprocess.Popen(
        [*words, "--name", "tiny", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"serving tiny at (http://\S+)/v1;", line):
                break
        else:
            raise AssertionError(f"it ended with {process.wait()}")
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{found[1]}/health").status_code == 200:
                    break
            time.sleep(0.02)
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def test_what_was_uploaded_outlives_a_kill_and_a_request_ends_gracefully(base: Path, tmp_path: Path) -> None:
    documents = ["--documents", str(tmp_path / "kept"), "--read-chunks", "1"]
    with command(base, *documents) as (process, url):
        told = httpx.post(f"{url}/v1/files", files={"file": ("ferry.txt", DOCUMENT)}).json()
        process.kill()  # at once, whether it was read or not
        process.wait()
    with command(base, *documents) as (process, url):
        question = {"model": "tiny", "prompt": "Where?", "document": told["id"], "max_tokens": 2}
        for given, read in (({}, 1), ({"read_chunks": 0}, 0)):
            answer = httpx.post(f"{url}/v1/completions", json={**question, **given}, timeout=60).json()["choices"][0]
            assert len(answer.get("read_chunks", [])) == read
        question = {**question, "max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=question, timeout=60) as answer:
            lines = answer.iter_lines()
            assert "choices" in json.loads(next(lines).removeprefix("data: "))
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(30) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_an_open_page_does_not_keep_the_server_and_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with command(base, "--page") as (process, url):
        assert [*tmp_path.glob("focus-uploads-*")]
        with httpx.stream("GET", f"{url}/gradio_api/heartbeat/tab", timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            list(lines)
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert time.monotonic() - start < GRACE
    assert not [*tmp_path.glob("focus-*")]


def test_what_cannot_be_is_found_before_the_model_is_loaded(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(*options: str) -> str:
        assert main(["serve", "--model", str(tmp_path / "no model"), *options]) == 2
        return capsys.readouterr().err

    assert "API key" in failed("--host", "0.0.0.0")
    assert "no-such-file" in failed("--api-key-file", str(tmp_path / "no-such-file"))
    (tmp_path / "key").write_text("\n")
    assert "`api_key` is empty" in failed("--api-key-file", str(tmp_path / "key"))
    assert "--page is for browsers on this machine" in failed("--page", "--host", "0.0.0.0")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gradio", None)
        assert "--page needs gradio (pip install 'focus_peft[demo]')" in failed("--page")
    assert "--memory-gb" in failed("--memory-gb", "0")
    (tmp_path / "key").write_bytes(b"\xff")
    assert "API key cannot be read from" in failed("--api-key-file", str(tmp_path / "key"))
    with listening("127.0.0.1", 0) as taken:  # another server, whose model is not loaded yet
        assert "--port" in failed("--port", str(taken.getsockname()[1]))
    monkeypatch.setenv("WORLD_SIZE", "2")  # as under torchrun
    assert "WORLD_SIZE is 2" in failed()
