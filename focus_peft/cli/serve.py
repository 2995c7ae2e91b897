"""`focus-peft serve`: an OpenAI-compatible server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .console import LOADING, USAGE, CommandError, add_command, failing_as, say
from .generate import load
from .reading_options import add_reading_options


DESCRIPTION = """\
Serves a model with its adapter to OpenAI's clients. Documents are uploaded once and stay read; whoever asks about one
names it as `document`, or in `file_ids`.
"""


def add_serve(commands: Any) -> None:
    """Add the command to the parser's commands."""
    serve = add_command(commands, "serve", "answer OpenAI's clients", description=DESCRIPTION)
    serve.set_defaults(run=run_serve)
    add = serve.add_argument
    add("--model", required=True, help="a model's directory or its name on the Hub")
    add("--gguf-file", metavar="NAME", help="the GGUF file inside --model to load the model from")
    add("--adapter", help="a trained adapter's directory or its name on the Hub (default: untrained twins)")
    add("--name", help="what clients call the model (default: the last part of --adapter or --model)")
    add("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1; others need an API key)")
    add("--port", type=int, default=8000, help="default: 8000; 0: any that is free")
    add("--api-key-file", metavar="FILE", type=Path, help="a file whose first line clients must send as their key")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="a name that clients may call the server")
    add("--documents", metavar="DIR", type=Path, help="keep documents and what was read of them here")
    add("--memory-gb", type=float, default=8.0, help="room for the keys and values of documents, in GiB (default: 8)")
    add("--batch-size", type=int, default=32, help="answers that are generated together (default: 32)")
    wait = "milliseconds that a request waits for others about its document (default: 20)"
    add("--batch-wait", type=float, default=20.0, metavar="MS", help=wait)
    add("--queue-size", type=int, default=256, help="answers that may wait (default: 256)")
    add("--max-tokens", type=int, default=1024, help="the longest answer (default: 1024)")
    add("--time-limit", type=float, default=600.0, metavar="SECONDS", help="for an answer (default: 600)")
    add("--max-upload-mb", type=float, default=64.0, help="the largest request, in MiB (default: 64)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: the model's own")
    add("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one)")
    add_reading_options(serve)


def run_serve(args: argparse.Namespace) -> None:
    """`focus-peft serve`: check, load, listen."""
    with failing_as(USAGE, "the server's packages are missing (pip install focus_peft[serve])", ImportError):
        import uvicorn

        from ..serve import Server, ServerSettings

    key = None
    if args.api_key_file is not None:
        with failing_as(USAGE, f"the API key cannot be read from {args.api_key_file}", OSError):
            key = (args.api_key_file.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
    try:
        settings = ServerSettings(
            name=args.name or Path(args.adapter or args.model).name,
            host=args.host,
            port=args.port,
            api_key=key,
            allowed_hosts=args.allowed_host,
            documents=args.documents,
            memory_gb=args.memory_gb,
            storage=args.storage or "device",
            read_chunks=args.read_chunks,
            batch_size=args.batch_size,
            batch_wait=args.batch_wait / 1000,
            queue_size=args.queue_size,
            max_tokens=args.max_tokens,
            time_limit=args.time_limit,
            max_upload_mb=args.max_upload_mb,
        )
    except ValueError as error:
        raise CommandError(str(error), USAGE) from error
    model, tokenizer = load(args)
    with failing_as(LOADING, f"documents cannot be kept in {args.documents}", OSError):
        server = Server(model, tokenizer, settings)
    say(f"serving {settings.name} at http://{settings.host}:{settings.port}.")
    # who is being answered when the server is told to end has half a minute
    uvicorn.run(server.app, host=settings.host, port=settings.port, timeout_graceful_shutdown=30, access_log=False)
