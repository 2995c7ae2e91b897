"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What a server counts. Each server has its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "focus_requests", "Requests that were answered", ["method", "path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "focus_request_seconds", "Seconds of a request", ["path"], buckets=SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "focus_first_token_seconds", "Seconds to the first token", buckets=SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("focus_prompt_tokens", "Tokens of prompts", registry=registry)
        self.new_tokens = Counter("focus_new_tokens", "Tokens of answers", registry=registry)
        self.batch_rows = Histogram(
            "focus_batch_rows", "Answers generated together", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.waiting = Gauge("focus_waiting_answers", "Answers that wait", registry=registry)
        self.failed = Counter("focus_failed_batches", "Batches that failed unexpectedly", registry=registry)
        self.memory_bytes = Gauge("focus_memory_bytes", "Bytes of documents that are held", registry=registry)
        self.documents = Gauge("focus_documents", "Documents", registry=registry)

    def text(self) -> bytes:
        """In the format that Prometheus reads."""
        return generate_latest(self.registry)
