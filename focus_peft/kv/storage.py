"""Where keys and values of chunks are kept, by name."""

from __future__ import annotations

import os

from .disk import DiskStore
from .host import HostStore
from .int8 import Int8Store
from .store import KeyValueStore


def make_store(
    storage: str, rows: int = 0, columns: int = 0, directory: str | os.PathLike | None = None
) -> KeyValueStore:
    """A store of the given kind: "device", "cpu", "int8" or "disk".

    Args:
        storage (`str`): The kind.
        rows, columns (`int`): Its size; it grows.
        directory (`str`, *optional*): Where "disk" makes its files. Default: the system's directory for temporary
            files.

    Raises:
        ValueError: if nothing can be written in `directory`.
    """
    if storage == "disk":
        return DiskStore(rows, columns, directory)
    kinds: dict[str, type[KeyValueStore]] = {"device": KeyValueStore, "cpu": HostStore, "int8": Int8Store}
    return kinds[storage](rows, columns)
