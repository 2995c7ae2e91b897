"""Synthetic tasks that tell whether an adapter finds what it has read. Each is a callable `(model, tokenizer) -> metrics`."""

from .passkey import PasskeyTask


__all__ = ["PasskeyTask"]
