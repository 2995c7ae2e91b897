"""The two files of a saved memory: states in safetensors, and a description in JSON."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..frozen.fingerprint import Fingerprint, digest
from ..kv.files import TYPES
from ..passes.chunking import cut
from ..passes.frames import Frames
from ..passes.ids import check_vocabulary, document_rows
from ..passes.settings import Settings, frames_of
from ..saving import saving_whole


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEMORY_FILE = "memory.json"
STATES_FILE = "memory.safetensors"
FORMAT = 2  # 1 had no checksums
SIDES = ("key", "value")


@dataclass(frozen=True)
class SavedMemory:
    """What the description of a memory says.

    Attributes:
        documents (`list[list[int]]`): The token ids of each document.
        chunk_size (`int`): Tokens in a chunk.
        frames (`Frames`): Where its rows start.
        states (`dict[str, list]`): Type and shape of every tensor of keys or values.
        digests (`list[str]`): Of the states of each chunk.
    """

    documents: list[list[int]]
    chunk_size: int
    frames: Frames
    states: dict[str, list]
    digests: list[str]

    @classmethod
    def of(cls, description: dict[str, Any]) -> SavedMemory:
        """Take apart what a file says, which may be anything.

        Raises:
            ValueError, KeyError: if something is missing or of the wrong type.
        """
        sizes = {name: description[name] for name in ("chunk_size", "nominal", "offset")}
        for name, value in sizes.items():
            if type(value) is not int or value < (name != "offset"):
                raise ValueError(f"`{name}` is {_shown(value)} in {MEMORY_FILE}, which is no such size")
        documents = description["documents"]
        if not isinstance(documents, list) or not all(isinstance(ids, list) for ids in documents):
            raise ValueError(f"`documents` is no list of lists in {MEMORY_FILE}")
        return cls(
            document_rows(documents, None),
            sizes["chunk_size"],
            Frames(sizes["nominal"], description["learned"], sizes["offset"]),
            description["states"],
            description["digests"],
        )

    def check(self, settings: Settings, formats: list[tuple[list[int], list[int]]]) -> None:
        """Raise a ValueError unless these are rows and states of a model that is read with `settings`.

        Args:
            settings (`Settings`): Of the model and its active adapter.
            formats (`list`): As of `Reader`.
        """
        frames, facts = self.frames, settings.facts
        check_vocabulary(self.documents, facts.vocab_size, "documents")
        positions = self.chunk_size + frames.nominal
        if frames != frames_of(facts, self.chunk_size, frames.nominal) or positions > facts.max_positions:
            raise ValueError(
                f"its rows start elsewhere than this model's can (`nominal` {frames.nominal}, `learned` "
                f"{_shown(frames.learned)}, `offset` {frames.offset})"
            )
        lengths = [len(chunk) for ids in self.documents for chunk in cut(ids, self.chunk_size)]
        rows, columns = len(lengths), max(lengths)
        sides = {f"{side}.{layer}": form[n] for layer, form in enumerate(formats) for n, side in enumerate(SIDES)}
        shapes = {name: [rows, heads, columns, dim] for name, (heads, dim) in sides.items()}
        types = [str(kind) for kind in TYPES]
        if not isinstance(self.states, dict) or self.states.keys() != shapes.keys():
            raise ValueError(f"`states` in {MEMORY_FILE} are not those of {len(formats)} layers")
        for name, found in self.states.items():
            if not isinstance(found, list) or found not in [[kind, shapes[name]] for kind in types]:
                raise ValueError(
                    f"`states` in {MEMORY_FILE} have {_shown(found)} for {name!r}, where {rows} chunks of {columns} "
                    f"tokens have the shape {shapes[name]}"
                )
        if not isinstance(self.digests, list) or len(self.digests) != rows:
            raise ValueError(f"`digests` in {MEMORY_FILE} are not those of {rows} chunks")


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."


def write_memory(
    directory: str | os.PathLike, description: dict[str, Any], write_states: Callable[[Path], list[str]]
) -> None:
    """Write both files, or nothing.

    Args:
        directory (`str` or `os.PathLike`): Must not hold a memory yet.
        description (`dict`): What `read_description` returns, without the digests.
        write_states (`Callable[[Path], list[str]]`): Writes the states into a file, and returns a digest of each row.

    Raises:
        FileExistsError: if `directory` exists and is not empty.
        OSError: if writing fails.
    """
    target = Path(directory).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"`directory` {str(target)!r} exists and is not empty; choose a new one, or remove it.")
    try:
        with saving_whole(target) as scratch:
            whole = {"format": FORMAT, **description, "digests": write_states(scratch / STATES_FILE)}
            (scratch / MEMORY_FILE).write_text(json.dumps({**whole, "checksum": _checksum(whole)}))
    except OSError as error:
        raise OSError(f"`directory` {str(target)!r} could not be written: {error}.") from error


def _checksum(description: dict[str, Any]) -> str:
    """Of all that a description says, but for the checksum itself."""
    said = {name: value for name, value in description.items() if name != "checksum"}
    return digest(json.dumps(said, sort_keys=True).encode())


def read_description(
    directory: Path, fingerprint: Fingerprint, tokenizer: PreTrainedTokenizerBase | None
) -> SavedMemory:
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
    try:
        description = json.loads((directory / MEMORY_FILE).read_text())
    except RecursionError as error:
        raise ValueError(f"{MEMORY_FILE} is nested too deeply") from error
    if not isinstance(description, dict):
        raise ValueError(f"{MEMORY_FILE} holds a {type(description).__name__}, and no description")
    if description["format"] != FORMAT:
        raise ValueError(
            f"its format is {_shown(description['format'])}, and this version reads format {FORMAT}; encode the "
            "documents again"
        )
    if description["checksum"] != _checksum(description):
        raise ValueError(f"{MEMORY_FILE} is not what was saved: its checksum differs")
    if not isinstance(description["model"], dict):
        raise ValueError(f"`model` is {_shown(description['model'])} in {MEMORY_FILE}, which names none")
    fingerprint.check(description["model"])
    saved = description["tokenizer"]
    if tokenizer is not None and saved is not None and saved != tokenizer_fingerprint(tokenizer):
        raise ValueError("it was made with another tokenizer; encode the documents again")
    return SavedMemory.of(description)


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
