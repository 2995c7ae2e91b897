"""Held-out texts of datasets: the Hub's, streamed, or those of a local folder.

Named ones are the sets that long-context models are compared on: PG19's test books, Proof-Pile's test documents, and CodeParrot's held-out
files. All are Parquet files in their repositories: no code of theirs is run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from focus_peft.data.config import SourceConfig
from focus_peft.data.sources import Reading, read_documents


PREFIX = "hub:"
NAMED: dict[str, dict[str, Any]] = {
    "pg19": {"path": "emozilla/pg19-test", "split": "test"},
    # the test split with Mistral's tokens beside the text, which is as it was; the split is called so there
    "proof-pile": {"path": "emozilla/proofpile-test-tokenized-mistral", "split": "train"},
    # a repository of its own for what was held out; the split is called so there
    "codeparrot": {
        "path": "codeparrot/codeparrot-valid-v2-near-dedup",
        "split": "train",
        "text_column": "content",
    },
}
# Documents that are read where a configuration does not say how many
DOCUMENTS = 20
FIELDS = ("path", "name", "split", "text_column", "revision", "streaming", "max_documents", "min_characters")


def is_dataset(entry: Any) -> bool:
    """Whether an entry of `texts` is one of these, not a pattern of files."""
    return not isinstance(entry, str) or entry.startswith(PREFIX)


def title(entry: Any) -> str:
    """An entry of `texts` in a word."""
    return entry if isinstance(entry, str) else str(entry.get("path"))


def check_entry(entry: Any) -> None:
    """Raise a ValueError, if an entry of `texts` cannot be read, without reading it."""
    _source(entry)


def read_dataset(entry: Any) -> list[str]:
    """The first documents of a dataset that are long enough.

    Args:
        entry (`str` or `Mapping`): "hub:pg19", "hub:proof-pile" or "hub:codeparrot"; or a mapping with this as `path`, or with the
            `path` of any dataset or folder, and other fields of `SourceConfig`. `max_documents` (default: 20) counts those that have
            `min_characters` (default: 0); what stands before them in the dataset is read and left out.

    Raises:
        ValueError: for an unknown name or field, or if no document is long enough.
        FileNotFoundError: if the dataset is not there, or cannot be reached.
        ImportError: if `datasets` is missing.
    """
    source, most, least = _source(entry)
    texts: list[str] = []
    try:
        for document in read_documents(source, Reading()):
            if len(document.text) >= least:
                texts.append(document.text)
            if len(texts) == most:
                break
    except OSError as error:
        raise FileNotFoundError(
            f"`texts` names {title(entry)!r}, but the dataset {source.path!r} cannot be read ({error.__cause__ or error}); where there is "
            "no network, name files, or a copy's folder as `path`."
        ) from error
    if not texts:
        raise ValueError(
            f"`texts` names {title(entry)!r}, but none of its documents has `min_characters` = {least}; choose a smaller number."
        )
    return texts


def _source(entry: Any) -> tuple[SourceConfig, int, int]:
    """(what is read, how many documents, how long they are at least)."""
    values: Any = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(values, Mapping) or not isinstance(values.get("path"), str):
        raise ValueError(
            f"`texts` has {entry!r}, where a pattern of files, a name such as 'hub:pg19', or a mapping with `path` belongs."
        )
    for field in values:
        if field not in FIELDS:
            raise ValueError(f"`texts` has the unknown entry `{field}`; a dataset takes {', '.join(FIELDS)}.")
    values = dict(values)
    if values["path"].startswith(PREFIX):
        name = values.pop("path").removeprefix(PREFIX)
        if name not in NAMED:
            known = ", ".join(PREFIX + known for known in NAMED)
            raise ValueError(
                f"`texts` names {PREFIX + name!r}, but there are {known}; any other dataset is named by `path`."
            )
        values = {"streaming": True, **NAMED[name], **values}
    most, least = values.pop("max_documents", DOCUMENTS), values.pop("min_characters", 0)
    for field, number, lowest in (("max_documents", most, 1), ("min_characters", least, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < lowest:
            raise ValueError(f"`{field}` of {title(entry)!r} must be an integer, {lowest} or above, got {number!r}.")
    return SourceConfig(**values, max_documents=sys.maxsize), most, least
