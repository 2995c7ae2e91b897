"""The command `focus-peft`."""

from .main import main


__all__ = ["main"]
