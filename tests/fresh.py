"""Processes of their own for tests, without the seconds that a new interpreter takes to import everything.

They are forked from a process that has imported focus_peft and computed nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import conftest  # noqa: F401  what almost all of them need


CONTEXT = multiprocessing.get_context("forkserver")


def run_apart(
    function: Callable[..., Any], calls: Sequence[Sequence[Any]], folder: Path, timeout: float = 300
) -> list[tuple[int, str]]:
    """Call a function in processes of their own, at the same time.

    Args:
        function (`Callable`): Of a module that can be imported.
        calls (`Sequence`): The arguments of each process.
        folder (`Path`): Where what they print is kept meanwhile.
        timeout (`float`): Seconds until they are killed.

    Returns:
        For each: its exit code, or minus the signal that ended it; and what it printed, errors included.
    """
    # the server is started at the first call, and imports this module
    CONTEXT.set_forkserver_preload(["fresh"])
    with _search_path():
        started = []
        for number, arguments in enumerate(calls):
            process = CONTEXT.Process(
                target=_run, args=(function, arguments, str(folder / f"{number}.out"), dict(os.environ))
            )
            process.start()
            started.append(process)
    for process in started:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    printed = [(folder / f"{number}.out").read_text(encoding="utf-8") for number in range(len(calls))]
    return [(process.exitcode or 0, text) for process, text in zip(started, printed)]


def _run(function: Callable[..., Any], arguments: Sequence[Any], file: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(file, "w", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    function(*arguments)


@contextlib.contextmanager
def _search_path() -> Any:
    """Within the context, a new interpreter finds what this one finds."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
