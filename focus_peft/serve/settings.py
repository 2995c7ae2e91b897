"""What a server is started with."""

from __future__ import annotations

import ipaddress
import math
import secrets
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ServerSettings:
    """What a server is started with.

    Attributes:
        name (`str`): What clients call the model.
        host (`str`), port (`int`): Where it listens.
        api_key (`str`, *optional*): What clients must send as a bearer token. Needed unless `host` is this machine's
            own.
        allowed_hosts (`list[str]`): Names under which clients may address the server, besides `host` and this
            machine's own.
        documents (`Path`, *optional*): Where documents and what was read of them are kept. None: they go with the
            process.
        memory_gb (`float`): Room for the keys and values of documents, in GiB, and as much again for chunks of
            prompts.
        storage (`str`): Where these are, as in `FocusConfig`.
        read_chunks (`int`, *optional*): As in `FocusConfig`, for requests that do not say. None: what the adapter's
            configuration has.
        batch_size (`int`): Answers that are generated together.
        batch_wait (`float`): Seconds that a request waits for others about the same document.
        running (`int`): Batches that take turns.
        queue_size (`int`): Answers that may wait; more are refused.
        max_tokens (`int`): The longest answer, and what a request gets that does not say.
        max_prompt_tokens (`int`): The longest prompt.
        time_limit (`float`): Seconds after its first token at which an answer ends.
        max_upload_mb (`float`): The largest body of a request, in MiB.
        page (`bool`): Whether there is a page at `/`, for browsers on this machine. It goes without an API key.
        example_tokens (`int`): Length of the page's example.

    Raises:
        ValueError: if a value cannot work.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allowed_hosts: list[str] = field(default_factory=list)
    documents: Path | None = None
    memory_gb: float = 8.0
    storage: str = "device"
    read_chunks: int | None = None
    batch_size: int = 32
    batch_wait: float = 0.02
    running: int = 4
    queue_size: int = 256
    max_tokens: int = 1024
    max_prompt_tokens: int = 1_000_000
    time_limit: float = 600.0
    max_upload_mb: float = 64.0
    page: bool = False
    example_tokens: int = 30_000

    def __post_init__(self) -> None:
        above = ("memory_gb", "batch_size", "running", "queue_size", "max_tokens", "max_prompt_tokens", "time_limit")
        for name in (*above, "max_upload_mb", "example_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}.")
        if not 0 <= self.batch_wait < math.inf:
            raise ValueError(f"`batch_wait` must be finite and 0 or above, got {self.batch_wait!r} seconds.")
        if not 0 <= self.port < 65536:
            raise ValueError(f"`port` must be from 0 to 65535, got {self.port!r}.")
        if self.api_key is not None and not self.api_key:
            raise ValueError("`api_key` is empty; give a key, or leave it out.")
        if self.page and (self.api_key is not None or not is_loopback(self.host)):
            raise ValueError(
                "`page` is for browsers on this machine, which send no API key, and whoever reaches it may ask; leave "
                "out the key and listen at 127.0.0.1 (others can come through an SSH tunnel), or leave out `page`."
            )
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"`host` is {self.host!r}, which other machines can reach, and there is no API key; give one, or "
                "listen at 127.0.0.1."
            )

    def admits_host(self, header: str) -> bool:
        """Whether a client may address the server so (the `Host` of a request, with or without a port)."""
        name = header.rsplit(":", 1)[0] if header.rsplit(":", 1)[-1].isdigit() else header
        name = name.strip("[]").lower()
        return is_loopback(name) or name in {self.host.lower(), *(host.lower() for host in self.allowed_hosts)}

    def admits_origin(self, header: str) -> bool:
        """Whether a page may use the server (the `Origin` of a request): one of the server's own."""
        scheme, _, rest = header.partition("://")
        return scheme in ("http", "https") and bool(rest) and self.admits_host(rest)

    def admits_key(self, authorization: str | None) -> bool:
        """Whether the key is right (the `Authorization` of a request)."""
        if self.api_key is None:
            return True
        kind, _, key = (authorization or "").partition(" ")
        return kind.lower() == "bearer" and secrets.compare_digest(key.strip().encode(), self.api_key.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
