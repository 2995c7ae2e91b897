"""Replicas of the server on Ray Serve: each document stays with one of them, and comes back with it."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from conftest import ROOT, save_base


ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")

from ray import serve  # noqa: E402


TEXTS = {
    "ferry.txt": "The ferry leaves from pier four. " * 8,
    "north.txt": "In the north there are only bridges. " * 8,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of two replicas with one tiny model each."""
    folder = tmp_path_factory.mktemp("ray")
    save_base(folder / "base", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    (folder / "key").write_text("secret\n")
    options = f"--model {folder}/base --name tiny --documents {folder}/kept --api-key-file {folder}/key"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    recipe = ROOT / "recipes" / "serving"
    paths = os.pathsep.join([str(ROOT), str(recipe)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.syspath_prepend(recipe)
        import ray_serve

        ray.init(num_cpus=8, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
        serve.start(http_options={"port": port})
        serve.run(ray_serve.app(ray_serve.Arguments(options=f"{options} --local-size 32 --max-tokens 2000")))
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", timeout=120)
        serve.shutdown()
        ray.shutdown()
        sys.modules.pop("ray_serve")


def asked(client: openai.OpenAI, id: str, **options: Any) -> Any:
    given: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "prompt": "Where?", **options}
    return client.completions.create(model="tiny", extra_body={"document": id}, **given)


def number(client: openai.OpenAI, replica: int, name: str) -> float:
    """What a replica counted."""
    url = str(client.base_url).replace("/v1/", f"/metrics?replica=replica-{replica}")
    lines = httpx.get(url, headers={"Authorization": "Bearer secret"}).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.slow
def test_documents_stay_with_their_replica_and_come_back_with_it(client: openai.OpenAI) -> None:
    ids = [client.files.create(file=(name, text.encode()), purpose="user_data").id for name, text in TEXTS.items()]
    assert [number(client, replica, "focus_documents ") for replica in (0, 1)] == [1, 1]
    first = [asked(client, id).choices[0].text for id in ids]
    for _ in range(2):
        for id, text in zip(ids, first):
            events = list(asked(client, id, stream=True))
            assert "".join(event.choices[0].text for event in events) == text and len(events) > 3
    answered = 'focus_requests_total{method="POST",path="/v1/completions",status="200"}'
    assert [number(client, replica, answered) for replica in (0, 1)] == [3, 3]
    assert sorted(file.filename for file in client.files.list()) == sorted(TEXTS)
    assert [client.files.content(id).text for id in ids] == list(TEXTS.values())

    # who goes away is not answered any more
    stream = asked(client, ids[0], max_tokens=2000, stream=True)
    next(iter(stream))
    stream.close()
    start = time.monotonic()
    while sum(number(client, replica, 'focus_requests_total{method="POST",path="/v1/comp') for replica in (0, 1)) < 7:
        assert time.monotonic() - start < 20
        time.sleep(0.1)
    assert sum(number(client, replica, "focus_new_tokens_total") for replica in (0, 1)) < 1000

    # a replica dies
    actors = [f"SERVE_REPLICA::default#replica-{replica}" for replica in (0, 1)]
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(actors[0]):
            ray.kill(ray.get_actor(**actor))
    assert [asked(client.with_options(max_retries=5), id).choices[0].text for id in ids] == first
    assert number(client, 0, answered) == 1

    for id in ids:
        assert client.files.delete(id).deleted
        with pytest.raises(openai.NotFoundError, match=id):
            asked(client, id)
    assert list(client.files.list()) == []


@pytest.mark.slow
def test_the_guard_stands_in_front(client: openai.OpenAI) -> None:
    url, key = f"{client.base_url}models", {"Authorization": "Bearer secret", "X-Request-ID": "mine"}
    good = httpx.get(url, headers=key)
    assert good.json()["data"][0]["id"] == "tiny"
    assert set(good.headers.get_list("x-request-id")) == {"mine"}  # Ray's proxy tells it too
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={**key, "Host": "evil.example"}).status_code == 421
    assert httpx.get(url, headers={**key, "Origin": "http://evil.example"}).status_code == 403
