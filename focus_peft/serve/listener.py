"""What a server listens with."""

from __future__ import annotations

import socket

import uvicorn

from .app import Server


class Listener(uvicorn.Server):
    """Runs a server until it is told to end; who is being answered then has some time.

    Args:
        server (`Server`): What answers.
        grace (`int`): Seconds for that.
    """

    def __init__(self, server: Server, grace: int) -> None:
        config = uvicorn.Config(server.app, timeout_graceful_shutdown=grace, access_log=False, log_level="warning")
        super().__init__(config)
        self.server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server.hang_up()
        await super().shutdown(sockets)
