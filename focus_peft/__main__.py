"""`python -m focus_peft` is the command `focus-peft`."""

import sys

from .cli.main import main


if __name__ == "__main__":
    sys.exit(main())
