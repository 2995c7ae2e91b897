"""The two files of a saved memory: states in safetensors, and a description in JSON."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..frozen.fingerprint import Fingerprint, digest
from ..saving import saving_whole


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEMORY_FILE = "memory.json"
STATES_FILE = "memory.safetensors"
FORMAT = 1


def write_memory(
    directory: str | os.PathLike, description: dict[str, Any], write_states: Callable[[Path], None]
) -> None:
    """Write both files, or nothing.

    Args:
        directory (`str` or `os.PathLike`): Must not hold a memory yet.
        description (`dict`): What `read_description` returns.
        write_states (`Callable[[Path], None]`): Writes the states into a file.

    Raises:
        FileExistsError: if `directory` exists and is not empty.
        OSError: if writing fails.
    """
    target = Path(directory).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"`directory` {str(target)!r} exists and is not empty; choose a new one, or remove it.")
    try:
        with saving_whole(target) as scratch:
            write_states(scratch / STATES_FILE)
            (scratch / MEMORY_FILE).write_text(json.dumps({"format": FORMAT, **description}))
    except OSError as error:
        raise OSError(f"`directory` {str(target)!r} could not be written: {error}.") from error


def read_description(
    directory: Path, fingerprint: Fingerprint, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any]:
    """What `write_memory` wrote, if it is for this model and tokenizer.

    Raises:
        FileNotFoundError: if `directory` holds no memory.
        ValueError, TypeError, KeyError: if it cannot be used; see `sentences`.
    """
    if not (directory / MEMORY_FILE).is_file() or not (directory / STATES_FILE).is_file():
        raise FileNotFoundError(
            f"`directory` {str(directory)!r} holds no memory ({MEMORY_FILE} and {STATES_FILE}); make one with "
            "`model.encode(...).save(directory)`."
        )
    description: dict[str, Any] = json.loads((directory / MEMORY_FILE).read_text())
    if description["format"] != FORMAT:
        raise ValueError(f"format {description['format']}, while this version reads format {FORMAT}")
    fingerprint.check(description["model"])
    saved = description["tokenizer"]
    if tokenizer is not None and saved is not None and saved != tokenizer_fingerprint(tokenizer):
        raise ValueError("it was made with another tokenizer; encode the documents again")
    return description


@contextlib.contextmanager
def sentences(directory: Path) -> Iterator[None]:
    """Within the context, whatever is wrong with a saved memory is a ValueError that says so."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"The memory in {str(directory)!r} cannot be used: {error} is missing in {MEMORY_FILE}."
        ) from error
    except (ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"The memory in {str(directory)!r} cannot be used: {str(error).rstrip('.')}.") from error


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the vocabulary."""
    return digest(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
