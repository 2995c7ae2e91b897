"""focus_peft gives any frozen decoder-only language model a long context, the FocusLLM way, as a PEFT adapter.

Importing it registers the method with PEFT: `get_peft_model(model, FocusConfig())` and `PeftModel.from_pretrained`
then work.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING


def _is_the_command() -> bool:
    """Whether this process is `focus-peft` or `python -m focus_peft`, which imports PEFT behind its own options."""
    program, words = getattr(sys, "argv", [""])[0], sys.orig_argv
    return Path(program).name in ("focus-peft", "focus-peft.exe") or (
        program == "-m" and ("-m", __name__) in zip(words, words[1:])
    )


__version__ = "0.1.0"

if TYPE_CHECKING or not _is_the_command():
    from .config import FocusConfig
    from .losses.output import FocusOutput
    from .memory.memory import Memory
    from .model import FocusModel
    from .registration import register

    __all__ = ["FocusConfig", "FocusModel", "FocusOutput", "Memory"]

    register()
