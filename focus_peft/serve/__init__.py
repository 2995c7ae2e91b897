"""An OpenAI-compatible server: a document is read once, and many people ask about it (docs/serving.md)."""

from .app import Server
from .listener import Listener
from .settings import ServerSettings


__all__ = ["Listener", "Server", "ServerSettings"]
