"""The server, through OpenAI's own client: what it answers is what `generate` does, whoever else asks meanwhile."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from conftest import save_base
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from focus_peft import FocusConfig
from focus_peft.memory.memory import Memory
from focus_peft.serve import Server, ServerSettings, batch


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
DOCUMENT = "The ferry leaves from pier four. " * 8
QUESTIONS = ["Where does it leave?", "Which pier?", "Is it a ferry, or is it something else?", "From where?"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[PeftModel, Any]:
    """(model, tokenizer), loaded from a folder."""
    folder = tmp_path_factory.mktemp("base")
    save_base(folder, TEMPLATE, max_position_embeddings=2048)
    base = AutoModelForCausalLM.from_pretrained(folder)
    base.generation_config.eos_token_id = None  # answers are as long as they may be
    torch.manual_seed(0)
    config = FocusConfig(chunk_size=32, local_size=32, prompt_size=16)
    model = get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if ".focus_" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model, AutoTokenizer.from_pretrained(folder)


@contextlib.contextmanager
def listening(server: Server) -> Iterator[str]:
    """Within the context, a server listens at the address that is yielded."""
    listens = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="warning"))
    thread = threading.Thread(target=listens.run, daemon=True)
    thread.start()
    try:
        while not listens.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listens.servers[0].sockets[0].getsockname()[1]}"
    finally:
        listens.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving(parts: tuple[PeftModel, Any], **fields: Any) -> Iterator[tuple[Server, openai.OpenAI]]:
    """A server that listens, and a client."""
    settings = ServerSettings(name="tiny", **{"max_tokens": 64, "batch_wait": 0.01, **fields})
    server = Server(*parts, settings)
    with listening(server) as address:
        key = settings.api_key or "none"
        with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60) as client:
            yield server, client


@pytest.fixture(scope="module")
def running(parts: tuple[PeftModel, Any]) -> Iterator[tuple[Server, openai.OpenAI]]:
    with serving(parts) as both:
        yield both


@pytest.fixture
def client(running: tuple[Server, openai.OpenAI]) -> openai.OpenAI:
    return running[1]


def uploaded(client: openai.OpenAI, text: str = DOCUMENT, name: str = "ferry.txt") -> str:
    """The id of a document that has been read."""
    file = client.files.create(file=(name, text.encode()), purpose="user_data")
    while (told := client.files.retrieve(file.id)).status == "uploaded":
        time.sleep(0.02)
    assert told.status == "processed", told.status_details
    return file.id


def chat_ids(parts: tuple[PeftModel, Any], text: str) -> list[int]:
    prompt = f"<user>{text}\n<assistant>"
    return parts[1](prompt, add_special_tokens=False).input_ids


def memory_and_end(document: list[int], local: int) -> tuple[list[int], list[int]]:
    """What the server keeps of a document as chunks, and what stands before each prompt."""
    end = min(len(document), local) // 2
    return document[: len(document) - end], document[len(document) - end :]


def generated(parts: tuple[PeftModel, Any], ids: list[int], document: str | None, count: int, **options: Any) -> str:
    """What the model itself says."""
    model, tokenizer = parts
    if document is not None:
        held, end = memory_and_end(tokenizer(document).input_ids, model.settings().sizes.local)
        options["memory"], ids = model.encode(held), end + ids
    given = torch.tensor([ids])
    output = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False, pad_token_id=0, **options
    )
    return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


def asked(client: openai.OpenAI, question: str, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 12, **options}
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": question}], **options)


# Answers


def test_an_answer_about_a_document_is_what_generate_says(parts: tuple[PeftModel, Any], client: openai.OpenAI) -> None:
    id = uploaded(client)
    for question in QUESTIONS[:2]:
        answer = asked(client, question, extra_body={"document": id})
        ids = chat_ids(parts, question)
        assert answer.choices[0].message.content == generated(parts, ids, DOCUMENT, 12)
        assert answer.choices[0].finish_reason == "length"
        held = len(parts[1](DOCUMENT).input_ids)
        assert answer.usage.prompt_tokens == held + len(ids) and answer.usage.completion_tokens == 12
    listed = asked(client, QUESTIONS[0], extra_body={"file_ids": [id]})
    assert listed.choices[0].message.content == generated(parts, chat_ids(parts, QUESTIONS[0]), DOCUMENT, 12)


def test_a_long_message_is_split_by_itself(parts: tuple[PeftModel, Any], client: openai.OpenAI) -> None:
    text = DOCUMENT + QUESTIONS[0]
    assert asked(client, text).choices[0].message.content == generated(parts, chat_ids(parts, text), None, 12)


def test_what_was_read_before_is_not_read_again(
    parts: tuple[PeftModel, Any], running: tuple[Server, openai.OpenAI]
) -> None:
    pool = parts[0].base_model.reader.pool
    other = "Another harbor is further north, and has no ferry at all. " * 5
    asked(running[1], other + "first?")
    hits, misses = pool.hits, pool.misses
    asked(running[1], other + "other")
    assert pool.hits - hits >= 8 and pool.misses - misses <= 1


def test_chunks_are_read_in_full_where_a_request_says_so(parts: tuple[PeftModel, Any], client: openai.OpenAI) -> None:
    id = uploaded(client)
    answer = asked(client, QUESTIONS[1], extra_body={"document": id, "read_chunks": 2})
    ids = chat_ids(parts, QUESTIONS[1])
    assert answer.choices[0].message.content == generated(parts, ids, DOCUMENT, 12, read_chunks=2)
    assert len(answer.choices[0].read_chunks) == 2
    assert not hasattr(asked(client, QUESTIONS[1], extra_body={"document": id}).choices[0], "read_chunks")


def test_chunks_that_the_adapter_reads_in_full_can_be_left_out(parts: tuple[PeftModel, Any]) -> None:
    config = parts[0].base_model.active_config
    config.read_chunks = 2  # as an adapter may have been saved
    with serving(parts) as (_, client):
        id = uploaded(client)
        for body, read in (({}, {"read_chunks": 2}), ({"read_chunks": 0}, {})):
            answer = asked(client, QUESTIONS[1], extra_body={"document": id, **body}).choices[0]
            assert len(getattr(answer, "read_chunks", [])) == len(read) * 2
            assert answer.message.content == generated(parts, chat_ids(parts, QUESTIONS[1]), DOCUMENT, 12, **read)


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    id = uploaded(client)
    whole = asked(client, QUESTIONS[0], n=2, seed=3, temperature=1.5, extra_body={"document": id})
    stream = asked(
        client, QUESTIONS[0], n=2, seed=3, temperature=1.5, extra_body={"document": id}, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    texts, finishes, used = ["", ""], [None, None], None
    events = list(stream)
    for event in events:
        used = event.usage or used
        for choice in event.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert finishes == ["length", "length"]
    assert used.completion_tokens == 24 and used == whole.usage
    assert len(events) > 6


def test_a_null_is_a_field_that_was_left_out(client: openai.OpenAI) -> None:
    fields = ("n", "stop", "stream", "presence_penalty", "frequency_penalty", "seed", "document", "tools", "top_k")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hm?"}], "temperature": 0, "max_tokens": 5}
    answers = []
    for nulls in ({}, dict.fromkeys(fields)):
        answer = httpx.post(f"{client.base_url}chat/completions", json={**body, **nulls}, timeout=60)
        assert answer.status_code == 200, answer.text
        answers.append(answer.json()["choices"])
    assert answers[0] == answers[1]


def test_a_prompt_is_completed(parts: tuple[PeftModel, Any], client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=DOCUMENT + "From", temperature=0, max_tokens=9)
    ids = parts[1](DOCUMENT + "From").input_ids
    assert answer.choices[0].text == generated(parts, ids, None, 9)
    again = client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=9, stream=True)
    assert "".join(event.choices[0].text for event in again) == answer.choices[0].text


def test_an_answer_ends_before_a_stop(client: openai.OpenAI) -> None:
    id = uploaded(client)
    options: dict[str, Any] = {"extra_body": {"document": id}, "max_tokens": 30}
    whole = asked(client, QUESTIONS[0], **options).choices[0].message.content
    stop = whole[9:12]
    first = whole.index(stop)
    answer = asked(client, QUESTIONS[0], stop=["no such text", stop], **options)
    assert answer.choices[0].message.content == whole[:first] and answer.choices[0].finish_reason == "stop"
    events = list(asked(client, QUESTIONS[0], stop=stop, stream=True, **options))
    assert "".join(event.choices[0].delta.content or "" for event in events) == whole[:first]


def test_log_probabilities_are_the_models(parts: tuple[PeftModel, Any], client: openai.OpenAI) -> None:
    model, tokenizer = parts
    answer = asked(client, "Hm?", logprobs=True, top_logprobs=3, max_tokens=4).choices[0]
    ids = chat_ids(parts, "Hm?")
    assert len(answer.logprobs.content) == 4
    for entry in answer.logprobs.content:
        with torch.no_grad():
            logits = model.get_base_model()(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        best = logits.topk(3)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entry.logprob == pytest.approx(float(best.values[0]), abs=1e-4)
        assert entry.token == tokenizer.decode([int(best.indices[0])])
        ids.append(int(best.indices[0]))
    text = client.completions.create(model="tiny", prompt="Hm", logprobs=2, max_tokens=5, temperature=0).choices[0]
    assert len(text.logprobs.tokens) == len(text.logprobs.token_logprobs) == len(text.logprobs.text_offset) == 5
    assert all(len(top) == 2 for top in text.logprobs.top_logprobs)


def test_penalties_keep_tokens_from_coming_again(client: openai.OpenAI) -> None:
    id = uploaded(client)

    def different(**penalties: float) -> int:
        options: dict[str, Any] = {"max_tokens": 40, "logprobs": True, "extra_body": {"document": id}, **penalties}
        answers = [asked(client, question, **options) for question in QUESTIONS]
        return sum(len({entry.token for entry in one.choices[0].logprobs.content}) for one in answers)

    assert different(frequency_penalty=2, presence_penalty=2) > different()


# Many at once


def test_questions_about_one_document_are_answered_together_as_each_alone(parts: tuple[PeftModel, Any]) -> None:
    with serving(parts, batch_wait=0.3) as (server, client):
        id = uploaded(client)

        def ask(number: int) -> str:
            how: dict[str, Any] = (
                {"temperature": 0} if number % 2 else {"temperature": 1.2, "seed": number, "top_p": 0.9}
            )
            question = QUESTIONS[number % len(QUESTIONS)]
            return (
                asked(client, question, max_tokens=6 + number, extra_body={"document": id}, **how)
                .choices[0]
                .message.content
            )

        alone = [ask(number) for number in range(8)]
        before = (
            server.metrics.batch_rows._sum.get(),
            sum(bucket.get() for bucket in server.metrics.batch_rows._buckets),
        )
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(8))) == alone
        rows = server.metrics.batch_rows._sum.get() - before[0]
        batches = sum(bucket.get() for bucket in server.metrics.batch_rows._buckets) - before[1]
        assert rows == 8 and batches < 5


def test_requests_about_different_things_take_turns(parts: tuple[PeftModel, Any], client: openai.OpenAI) -> None:
    other = "In the north there are no ferries at all, only bridges. " * 6
    ids = {DOCUMENT: uploaded(client), other: uploaded(client, other, "north.txt"), None: None}

    def ask(document: str | None) -> str:
        extra = {} if document is None else {"extra_body": {"document": ids[document]}}
        return asked(client, QUESTIONS[1], **extra).choices[0].message.content

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, [*ids] * 3))
    expected = [generated(parts, chat_ids(parts, QUESTIONS[1]), document, 12) for document in ids]
    assert found == expected * 3


def test_one_that_cannot_be_read_does_not_fail_others(
    parts: tuple[PeftModel, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sizes = batch.generate, []

    def generate(model: Any, rows: Any, *args: Any) -> None:
        sizes.append(len(rows))
        if any(row.max_tokens == 13 for row in rows):
            raise ValueError("`input_ids` cannot be read; give others.")
        whole(model, rows, *args)

    monkeypatch.setattr(batch, "generate", generate)
    with serving(parts, batch_wait=0.3) as (_, client):
        id = uploaded(client)

        def ask(tokens: int) -> Any:
            try:
                return asked(client, QUESTIONS[0], max_tokens=tokens, extra_body={"document": id}).choices[0]
            except openai.BadRequestError as error:
                return error

        with ThreadPoolExecutor(3) as pool:
            good, bad, other = pool.map(ask, [12, 13, 12])
    assert (
        good.message.content == other.message.content == generated(parts, chat_ids(parts, QUESTIONS[0]), DOCUMENT, 12)
    )
    assert isinstance(bad, openai.BadRequestError) and "`input_ids` cannot be read" in bad.message
    assert max(sizes) > 1


def test_a_full_queue_says_when_to_come_again(parts: tuple[PeftModel, Any]) -> None:
    with serving(parts, queue_size=2) as (server, client):
        with pytest.raises(openai.RateLimitError, match="at most 2") as refused:
            asked(client, "Hm?", n=3)
        assert int(refused.value.response.headers["retry-after"]) > 0
        assert asked(client, "Hm?", n=2).usage.completion_tokens == 24


def test_who_goes_away_is_not_answered_any_more(parts: tuple[PeftModel, Any]) -> None:
    with serving(parts, max_tokens=1500) as (server, client):
        id = uploaded(client)
        stream = asked(client, QUESTIONS[0], max_tokens=1500, extra_body={"document": id}, stream=True)
        next(iter(stream))
        next(iter(stream))
        stream.close()
        start = time.monotonic()
        while server.engine._running:
            assert time.monotonic() - start < 20
            time.sleep(0.02)
        assert asked(client, QUESTIONS[0], extra_body={"document": id}).usage.completion_tokens == 12


def test_an_answer_has_its_time(parts: tuple[PeftModel, Any]) -> None:
    with serving(parts, max_tokens=1500, time_limit=0.5) as (_, client):
        answer = asked(client, DOCUMENT, max_tokens=1500)
        assert answer.choices[0].finish_reason == "length" and 0 < answer.usage.completion_tokens < 1500


def test_what_an_answer_waits_for_is_not_its_time(
    parts: tuple[PeftModel, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(parts, time_limit=1) as (server, client):
        encode = server.documents._encode

        def slowly(*args: Any) -> Any:
            time.sleep(1.5)
            return encode(*args)

        monkeypatch.setattr(server.documents, "_encode", slowly)
        file = client.files.create(file=("ferry.txt", DOCUMENT.encode()), purpose="user_data")
        assert asked(client, QUESTIONS[0], max_tokens=3, extra_body={"document": file.id}).usage.completion_tokens == 3


def test_a_short_answer_does_not_wait_for_a_long_one_in_its_batch(parts: tuple[PeftModel, Any]) -> None:
    with serving(parts, batch_wait=0.5, max_tokens=1500) as (server, client):
        id = uploaded(client)

        def ask(tokens: int) -> Any:
            return asked(client, QUESTIONS[0], max_tokens=tokens, extra_body={"document": id}).usage

        with ThreadPoolExecutor(2) as pool:
            long, short = pool.submit(ask, 1500), pool.submit(ask, 2)
            assert short.result().completion_tokens == 2
            assert not long.done() and len(next(iter(server.engine._running.values()))) == 2
            assert long.result().completion_tokens == 1500


# Documents


def test_documents_are_listed_told_again_and_forgotten(client: openai.OpenAI) -> None:
    text = "Grüße an alle, die hier lesen. " * 6
    id = uploaded(client, text, "grüße.txt")
    assert id in [file.id for file in client.files.list()]
    told = client.files.retrieve(id)
    assert told.filename == "grüße.txt" and told.bytes == len(text.encode())
    assert client.files.content(id).text == text
    assert client.files.delete(id).deleted
    for gone in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError, match=id):
            gone(id)
    with pytest.raises(openai.NotFoundError, match=id):
        asked(client, "Hm?", extra_body={"document": id})


def test_documents_are_there_again_after_a_restart(parts: tuple[PeftModel, Any], tmp_path: Path) -> None:
    with serving(parts, documents=tmp_path) as (_, client):
        id = uploaded(client)
        first = asked(client, QUESTIONS[0], extra_body={"document": id}).choices[0].message.content
    # an upload that was answered, of a process that was killed before it was read; and one that never was
    unread = tmp_path / f"file-{'0' * 32}"
    unread.mkdir()
    (unread / "text.txt").write_text(DOCUMENT)
    told = json.loads((tmp_path / id / "about.json").read_text())
    (unread / "about.json").write_text(json.dumps({**told, "name": "unread.txt"}))
    (tmp_path / f"file-{'1' * 32}").mkdir()
    with serving(parts, documents=tmp_path) as (_, client):
        assert asked(client, QUESTIONS[0], extra_body={"document": id}).choices[0].message.content == first
        assert asked(client, QUESTIONS[0], extra_body={"document": unread.name}).choices[0].message.content == first
        assert sorted(file.filename for file in client.files.list()) == ["ferry.txt", "unread.txt"]


def test_a_kill_behind_the_writing_of_a_memory_loses_no_token(
    parts: tuple[PeftModel, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Memory.save

    def save_and_look(memory: Memory, folder: Path, **options: Any) -> None:
        save(memory, folder, **options)
        shutil.copytree(tmp_path / "kept", tmp_path / "killed")  # what a kill at this moment leaves

    monkeypatch.setattr(Memory, "save", save_and_look)
    with serving(parts, documents=tmp_path / "kept") as (_, client):
        id = uploaded(client)
    with serving(parts, documents=tmp_path / "killed") as (_, client):
        answer = asked(client, QUESTIONS[0], extra_body={"document": id})
        ids = chat_ids(parts, QUESTIONS[0])
        assert answer.choices[0].message.content == generated(parts, ids, DOCUMENT, 12)
        assert answer.usage.prompt_tokens == len(parts[1](DOCUMENT).input_ids) + len(ids)


def test_memories_above_the_limit_are_let_go_and_come_back(parts: tuple[PeftModel, Any]) -> None:
    with serving(parts, memory_gb=1e-9) as (server, client):
        id = uploaded(client)
        document = server.documents.get(id)
        for _ in range(2):
            answer = asked(client, QUESTIONS[0], extra_body={"document": id})
            assert answer.choices[0].message.content == generated(parts, chat_ids(parts, QUESTIONS[0]), DOCUMENT, 12)
            while document.users:
                time.sleep(0.01)
            assert document.memory is None
        folder = server.documents.folder
        assert folder.is_dir()
    assert not folder.exists()


# What is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, ["`tools`", "calls no tools"]),
        ({"response_format": {"type": "json_object"}}, ["`response_format`"]),
        ({"max_tokens": 65}, ["`max_tokens`", "65", "64"]),
        ({"max_completion_tokens": 65}, ["`max_completion_tokens`", "65", "64"]),
        ({"extra_body": {"top_k": 4}}, ["`top_k`", "does not know"]),
        ({"temperature": 3}, ["`temperature`", "2"]),
        ({"stop": ""}, ["`stop`", "empty"]),
        ({"extra_body": {"read_chunks": -1}}, ["`read_chunks`"]),
        ({"extra_body": {"document": "file-1", "file_ids": ["file-2"]}}, ["`document`", "`file_ids`"]),
    ],
)
def test_what_is_not_done_is_refused(client: openai.OpenAI, fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        asked(client, "Hm?", **fields)
    error = refused.value.body
    assert isinstance(error, dict) and error["type"] == "invalid_request_error" and error["param"]
    assert all(word in error["message"] for word in words), error["message"]


def test_messages_that_cannot_be_are_refused(client: openai.OpenAI) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    for message in ({"role": "user", "content": picture}, {"role": "tool", "content": "x"}, {"content": 3}):
        with pytest.raises(openai.BadRequestError, match=r"messages\[0\]"):
            client.chat.completions.create(model="tiny", messages=[message])  # type: ignore[list-item]
    with pytest.raises(openai.NotFoundError, match="'other'"):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "Hm?"}])


def test_a_body_that_cannot_be_is_refused_by_the_names_that_were_given(client: openai.OpenAI) -> None:
    for sent, param, words in (
        (b'{"model": ', None, "The body is no JSON: "),
        (b"[]", None, "`body` cannot be used: "),
        (b'{"model": "tiny", "prompt": ["a", "b"]}', "prompt", "`prompt` cannot be used: "),
        (b'{"model": "tiny"}', "prompt", "`prompt` cannot be used: Field required."),
    ):
        headers = {"Content-Type": "application/json"}
        found = httpx.post(f"{client.base_url}completions", content=sent, headers=headers)
        error = found.json()["error"]
        assert (found.status_code, error["param"]) == (400, param) and error["message"].startswith(words), error


def test_an_error_that_nobody_foresaw_is_told_and_counted(
    running: tuple[Server, openai.OpenAI], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server, client = running

    def missing(id: str) -> str:
        raise FileNotFoundError(id)

    monkeypatch.setattr(server.documents, "text", missing)
    with caplog.at_level("INFO", "focus_peft.serve"):
        with pytest.raises(openai.InternalServerError) as failed:
            client.files.content("file-1")
        answered, start = f'"request": "{failed.value.response.headers["x-request-id"]}"', time.monotonic()
        while not (lines := [message for message in caplog.messages if answered in message]):  # behind the answer
            assert time.monotonic() - start < 20
            time.sleep(0.01)
    assert "FileNotFoundError" in failed.value.message
    assert json.loads(lines[0])["status"] == 500


def test_files_that_are_no_text_are_refused(client: openai.OpenAI) -> None:
    for data, word in ((b"\xff\xfe\x00", "UTF-8"), (b"a\0b", "NUL"), (b" \n", "empty")):
        with pytest.raises(openai.BadRequestError, match=word):
            client.files.create(file=("x", data), purpose="user_data")


def test_keys_hosts_origins_and_sizes_are_checked_first(parts: tuple[PeftModel, Any]) -> None:
    with serving(parts, api_key="secret", max_upload_mb=0.01, allowed_hosts=["here.example"]) as (_, client):
        url = str(client.base_url)
        good = {"Authorization": "Bearer secret"}

        def status(headers: dict[str, str], **given: Any) -> int:
            found = httpx.request("POST" if given else "GET", f"{url}models", headers=headers, **given)
            if found.status_code >= 400 and found.status_code != 405:
                assert found.json()["error"]["message"].endswith(".")
            assert found.headers["x-request-id"]
            return found.status_code

        assert client.models.list().data[0].id == "tiny"
        assert status(good) == 200
        assert status({}) == status({"Authorization": "Bearer wrong"}) == status({"Authorization": "secret"}) == 401
        assert httpx.get(url.replace("/v1/", "/health")).status_code == 200
        assert status({**good, "Host": "evil.example"}) == 421
        assert status({**good, "Host": "here.example:80"}) == 200
        assert status({**good, "Origin": "http://evil.example"}) == status({**good, "Origin": "null"}) == 403
        assert status({**good, "Origin": "http://localhost:8000"}) == 200
        assert status(good, content=b"x" * 20_000) == 413

        def parts_of() -> Iterator[bytes]:  # of a length that nobody told
            yield from [b"x" * 4000] * 6

        found = httpx.post(f"{url}completions", headers=good, content=parts_of())
        assert found.status_code == 413


def test_a_server_that_others_can_reach_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.1", "server.example"):
        with pytest.raises(ValueError, match="`host` is .* API key"):
            ServerSettings(name="x", host=host)
        ServerSettings(name="x", host=host, api_key="k")
    for host in ("127.0.0.1", "::1", "localhost"):
        ServerSettings(name="x", host=host)


@pytest.mark.parametrize(
    "name", ["memory_gb", "batch_size", "queue_size", "max_tokens", "time_limit", "max_upload_mb"]
)
def test_sizes_must_be_above_zero(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be above 0"):
        ServerSettings(name="x", **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("wait", [-1, math.inf, math.nan])
def test_a_wait_that_never_ends_is_refused(wait: float) -> None:
    with pytest.raises(ValueError, match="`batch_wait` must be finite"):
        ServerSettings(name="x", batch_wait=wait)


def test_what_happened_is_counted(running: tuple[Server, openai.OpenAI]) -> None:
    client = running[1]
    asked(client, "Hm?")
    text = httpx.get(str(client.base_url).replace("/v1/", "/metrics")).text
    assert 'focus_requests_total{method="POST",path="/v1/chat/completions",status="200"}' in text
    assert "focus_first_token_seconds_count" in text and "focus_new_tokens_total" in text


def test_the_client_of_the_page_works(
    parts: tuple[PeftModel, Any],
    client: openai.OpenAI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for old, new in {"http://127.0.0.1:8000/v1": str(client.base_url), "smollm2-135m-instruct-focus": "tiny"}.items():
        assert all(old in code for code in codes)
        codes = [code.replace(old, new) for code in codes]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(DOCUMENT)
    names: dict[str, Any] = {}
    exec(compile(codes[0], "serving.md", "exec"), names)
    printed = capsys.readouterr().out.removesuffix("\n")
    ids = chat_ids(parts, "What is a candidate?")
    assert printed == generated(parts, ids, DOCUMENT, 64, read_chunks=2)
    if importlib.util.find_spec("langchain_openai"):  # the page's other client, which is no dependency
        exec(compile(codes[1], "serving.md", "exec"), names)
        assert capsys.readouterr().out == generated(parts, ids, DOCUMENT, 64)
