"""A process that uses the Hub's real client: it reads where the Hub is when it is imported, so it cannot be in the
tests' own process.

    HF_ENDPOINT=... HF_HOME=... python hub_client.py

Each line of stdin is a request in JSON, `{"argv": [...]}` for a command or `{"code": "..."}` for lines of Python, with
a `token` or none; each line of stdout is its outcome.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Outcome:
    """`code`: the exit code, or 1 after an exception. `out`, `err`: what was printed, tracebacks included."""

    code: int
    out: str
    err: str


class Client:
    """The process, as the tests see it."""

    def __init__(self, url: str, home: Path) -> None:
        self.home = home
        root = Path(__file__).parents[1]
        gone = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE")
        env = {name: value for name, value in os.environ.items() if name not in gone}
        env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
        command = [sys.executable, "-W", "ignore", str(Path(__file__))]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, token: str | None, **request: Any) -> Outcome:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({**request, "token": token}) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    from focus_peft.cli.main import main as command

    for line in sys.stdin:
        request = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if request["token"]:
            os.environ["HF_TOKEN"] = request["token"]
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                if "argv" in request:
                    code = command(request["argv"])
                else:
                    exec(compile(request["code"], "<request>", "exec"), {"__name__": "__request__"})
            except BaseException:
                code = 1
                traceback.print_exc()
        answers.write(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
