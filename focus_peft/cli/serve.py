"""`focus-peft serve`: an OpenAI-compatible server."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import socket
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import LOADING, USAGE, CommandError, add_command, failing_as, say
from .generate import add_model_options, load
from .reading_options import add_reading_options


if TYPE_CHECKING:
    from ..serve import ServerSettings


DESCRIPTION = """\
Serves a model with its adapter to OpenAI's clients. Documents are uploaded once and stay read; whoever asks about one
names it as `document`, or in `file_ids`.
"""
# Seconds that answers have to end when the server is told to
GRACE = 30


def add_serve(commands: Any) -> None:
    """Add the command to the parser's commands."""
    serve = add_command(commands, "serve", "answer OpenAI's clients", description=DESCRIPTION)
    serve.set_defaults(run=run_serve)
    add_model_options(serve)
    add = serve.add_argument
    add("--name", help="what clients call the model (default: the last part of --adapter or --model)")
    add("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1; others need an API key)")
    add("--port", type=int, default=8000, help="default: 8000; 0: any that is free")
    add("--api-key-file", metavar="FILE", type=Path, help="a file whose first line clients must send as their key")
    name = "a name that clients may call the server"
    add("--allowed-host", dest="allowed_hosts", action="append", default=[], metavar="NAME", help=name)
    add("--documents", metavar="DIR", type=Path, help="keep documents and what was read of them here")
    add("--memory-gb", type=float, default=8.0, help="room for the keys and values of documents, in GiB (default: 8)")
    add("--batch-size", type=int, default=32, help="answers that are generated together (default: 32)")
    wait = "milliseconds that a request waits for others about its document (default: 20)"
    add("--batch-wait", type=float, default=20.0, metavar="MS", help=wait)
    add("--queue-size", type=int, default=256, help="answers that may wait (default: 256)")
    add("--max-tokens", type=int, default=1024, help="the longest answer (default: 1024)")
    add("--time-limit", type=float, default=600.0, metavar="SECONDS", help="from the first token on (default: 600)")
    add("--max-upload-mb", type=float, default=64.0, help="the largest request, in MiB (default: 64)")
    add("--page", action="store_true", help="serve a page at / for browsers on this machine; it needs gradio")
    add("--example-tokens", type=int, default=30000, help="length of the page's example (default: 30000)")
    add_reading_options(serve)


def settings_of(args: argparse.Namespace) -> ServerSettings:
    """What the options say of the server."""
    from ..serve import ServerSettings

    key = None
    if args.api_key_file is not None:
        with failing_as(USAGE, f"the API key cannot be read from {args.api_key_file}"):
            key = (args.api_key_file.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
    given = {field.name: getattr(args, field.name) for field in fields(ServerSettings) if hasattr(args, field.name)}
    given |= {
        "name": args.name or Path(args.adapter or args.model).name,
        "api_key": key,
        "storage": args.storage or "device",
        "batch_wait": args.batch_wait / 1000,
    }
    try:
        return ServerSettings(**given)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from error


def load_served(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model that the options say, and its tokenizer. Requests say how many chunks are read, or else the settings,
    so that 0 can switch it off.
    """
    model, tokenizer = load(argparse.Namespace(**{**vars(args), "read_chunks": None}))
    with failing_as(USAGE, "these options do not go together", ValueError):
        model.settings(read_chunks=args.read_chunks)
    return model, tokenizer


def run_serve(args: argparse.Namespace) -> None:
    """`focus-peft serve`: check, load, listen."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise CommandError(
            f"WORLD_SIZE is {processes}, but a server is one process; start it without torchrun, or several of them "
            "with recipes/serving/ray_serve.py.",
            USAGE,
        )
    with failing_as(USAGE, "the server's packages are missing (pip install focus_peft[serve])", ImportError):
        from ..serve import Listener, Server
    if args.page and importlib.util.find_spec("gradio") is None:
        raise CommandError("--page needs gradio (pip install 'focus_peft[demo]').", USAGE)

    settings = settings_of(args)
    with listening(settings.host, settings.port) as place:  # a port that is taken is found before the model is loaded
        model, tokenizer = load_served(args)
        with failing_as(LOADING, f"documents cannot be kept in {args.documents}", OSError):
            server = Server(model, tokenizer, settings)
        logging.basicConfig(format="%(message)s")
        logging.getLogger("focus_peft.serve").setLevel(logging.INFO)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{place.getsockname()[1]}"
        say(f"serving {settings.name} at {address}/v1; Ctrl-C ends it.")
        if settings.page:
            say(f"open {address}/ in a browser.")
        Listener(server, GRACE).run(sockets=[place])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; clients that come before the model is loaded wait."""
    with failing_as(USAGE, f"nothing can listen at {host}, port {port}; choose another --port or --host", OSError):
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, dualstack_ipv6=family == socket.AF_INET6)
