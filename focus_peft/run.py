"""Another tool, in a process in which PEFT knows focus adapters: what never imports focus_peft fails to load one with
`KeyError: 'FOCUS'`.

    python -m focus_peft.run lm_eval --model hf --model_args pretrained=BASE,peft=ADAPTER --tasks gsm8k
    python -m focus_peft.run path/to/script.py --its-own options
    accelerate launch -m focus_peft.run lm_eval --model hf ...

`python -m focus_peft.run MODULE …` is `python -m MODULE …`, and with the path of a script `python SCRIPT …`.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence

import focus_peft  # noqa: F401  (registers the adapter with PEFT)


USAGE = "usage: python -m focus_peft.run MODULE [arguments], or the path of a script in place of MODULE"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a module or a script as `__main__`.

    Args:
        argv (`Sequence[str]`, *optional*): What to run, and its arguments. Defaults to those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    sys.argv = words
    if os.path.isfile(words[0]):
        sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")
    elif is_there(words[0]):
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        print(f"error: there is no module and no file {words[0]!r}; install what it belongs to.", file=sys.stderr)
        sys.exit(2)


def is_there(module: str) -> bool:
    """Whether a module can be found by its dotted name."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


if __name__ == "__main__":
    main()
