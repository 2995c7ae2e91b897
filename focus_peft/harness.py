"""lm-evaluation-harness with focus adapters: its own command, in a process in which PEFT knows them.

    python -m focus_peft.harness --model hf --tasks lambada_openai \\
        --model_args pretrained=BASE,peft=ADAPTER,max_length=32768

Everything behind the module's name goes to `lm_eval` (`pip install 'focus_peft[eval]'`). Without `max_length` the
harness cuts inputs to the base model's own window. See docs/evaluation.md.
"""

from __future__ import annotations

import sys

import focus_peft  # noqa: F401  (registers the adapter with PEFT)


def main() -> None:
    """Run `lm_eval` with the process's arguments."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        sys.exit(f"error: lm-eval is missing ({error}); install it with `pip install 'focus_peft[eval]'`.")
    cli_evaluate()


if __name__ == "__main__":
    main()
