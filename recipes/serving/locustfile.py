"""Many clients who ask about one document, one question after another: requests a second, and when the first token
comes.

    focus-peft serve --model … --adapter … &
    pip install locust
    locust --headless --locustfile recipes/serving/locustfile.py --host http://127.0.0.1:8000 \\
        --users 32 --spawn-rate 32 --run-time 60s --json-file docs/results/serving-32

The first client uploads the document (`FOCUS_DOCUMENT`, a file; README.md if not given). "first token" and "whole
answer" are the lines that count.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from locust import HttpUser, constant, task


DOCUMENT = Path(os.environ.get("FOCUS_DOCUMENT", "README.md"))
QUESTIONS = ("What is a chunk?", "What is a candidate?", "Who wrote the paper?", "How is an adapter trained?")
NEW_TOKENS = int(os.environ.get("FOCUS_NEW_TOKENS", "16"))


class Asking(HttpUser):
    """Asks one question after another."""

    wait_time = constant(0)
    file: str | None = None
    model: str | None = None
    lock = threading.Lock()

    def on_start(self) -> None:
        with Asking.lock:
            if Asking.file is None:
                Asking.model = self.client.get("/v1/models").json()["data"][0]["id"]
                told = self.client.post("/v1/files", files={"file": (DOCUMENT.name, DOCUMENT.read_bytes())}).json()
                while told["status"] == "uploaded":
                    time.sleep(0.2)
                    told = self.client.get(f"/v1/files/{told['id']}", name="/v1/files/id").json()
                if told["status"] == "error":
                    raise RuntimeError(told["status_details"])
                Asking.file = told["id"]

    @task
    def ask(self) -> None:
        number = int(time.monotonic_ns()) % len(QUESTIONS)
        body: dict[str, Any] = {
            "model": self.model,
            "document": self.file,
            "prompt": f"\n\nQuestion: {QUESTIONS[number]}\nAnswer:",
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "stream": True,
        }
        start = time.perf_counter()
        first, tokens, whole = None, 0, False
        with self.client.post("/v1/completions", json=body, stream=True, catch_response=True) as answer:
            for line in answer.iter_lines():
                if not line:
                    continue
                first = first or time.perf_counter()
                if line == b"data: [DONE]":
                    whole = True
                elif "error" in json.loads(line.removeprefix(b"data: ")):
                    break
                else:
                    tokens += 1
            if not whole:
                answer.failure("the answer is not whole")
        if first is not None and whole:
            self._tell("first token", first - start, tokens)
            self._tell("whole answer", time.perf_counter() - start, tokens)

    def _tell(self, name: str, seconds: float, tokens: int) -> None:
        """A line of the report; what locust measures of a stream ends with its headers."""
        self.environment.events.request.fire(
            request_type="POST",
            name=name,
            response_time=1000 * seconds,
            response_length=tokens,
            exception=None,
            context={},
        )
