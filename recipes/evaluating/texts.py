"""Held-out texts: files, and datasets of the Hub, streamed, or of a local folder.

Named datasets are the sets that long-context models are compared on: PG19's test books, Proof-Pile's test documents,
and CodeParrot's held-out files. All are Parquet files in their repositories: no code of theirs is run.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lib.yaml_files import build

from focus_peft.data.config import SourceConfig
from focus_peft.data.sources import Reading, read_documents
from focus_peft.fields import COUNT, SIZE


PREFIX = "hub:"
NAMED: dict[str, dict[str, Any]] = {
    "pg19": {"path": "emozilla/pg19-test", "split": "test"},
    # the test split with Mistral's tokens beside the text, which is as it was; the split is called so there
    "proof-pile": {"path": "emozilla/proofpile-test-tokenized-mistral", "split": "train"},
    # a repository of its own for what was held out; the split is called so there
    "codeparrot": {"path": "codeparrot/codeparrot-valid-v2-near-dedup", "split": "train", "text_column": "content"},
}


@dataclass
class TextDataset:
    """A dataset among the texts of an evaluation.

    Attributes:
        path (`str`): A dataset on the Hub, or a folder.
        name, split, text_column, revision, streaming: As in [`SourceConfig`].
        max_documents (`int`): So many documents are read. Defaults to 20.
        min_characters (`int`): Shorter documents are read and left out. Defaults to 0.
    """

    path: str
    name: str | None = None
    split: str | None = None
    text_column: str = "text"
    revision: str | None = None
    streaming: bool = False
    max_documents: int = 20
    min_characters: int = 0

    @classmethod
    def of(cls, entry: Any) -> TextDataset:
        """An entry of `texts`: "hub:pg19" or another name, or a mapping with such a name or any other dataset as
        `path`.

        Raises:
            ValueError: for an unknown name or field, or a value that cannot be.
        """
        values: Any = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(values, Mapping) or not isinstance(values.get("path"), str):
            raise ValueError(
                f"`texts` has {entry!r}; give a pattern of files, a name such as 'hub:pg19', or a mapping with `path`."
            )
        name = values["path"].removeprefix(PREFIX)
        if name == values["path"]:
            return build(cls, values, "texts")
        if name not in NAMED:
            known = ", ".join(PREFIX + known for known in NAMED)
            raise ValueError(
                f"`texts` names {PREFIX + name!r}, but there are {known}; any other dataset is named by `path`."
            )
        return build(cls, {"streaming": True, **NAMED[name], **values, "path": NAMED[name]["path"]}, "texts")

    def __post_init__(self) -> None:
        SIZE.check(f"`max_documents` of {self.path!r}", self.max_documents)
        COUNT.check(f"`min_characters` of {self.path!r}", self.min_characters)

    def read(self, name: str) -> list[str]:
        """The first documents that are long enough; `name` is what the configuration calls the dataset.

        Raises:
            ValueError: if there are none.
            FileNotFoundError: if the dataset is not there, or cannot be reached.
            ImportError: if `datasets` is missing.
        """
        names = ("name", "split", "text_column", "revision", "streaming")
        given: Any = {name: getattr(self, name) for name in names}
        source = SourceConfig(self.path, **given, max_documents=sys.maxsize)
        try:
            long = (d.text for d in read_documents(source, Reading()) if len(d.text) >= self.min_characters)
            texts = list(islice(long, self.max_documents))
        except OSError as error:
            raise FileNotFoundError(
                f"`texts` names {name!r}, but the dataset {self.path!r} cannot be read ({error.__cause__ or error}); "
                "where there is no network, name files, or a copy's folder as `path`."
            ) from error
        if not texts:
            lack = "it has no text; name another one"
            if self.min_characters:
                lack = f"none of its documents has `min_characters` = {self.min_characters}; choose a smaller number"
            raise ValueError(f"`texts` names {name!r}, but {lack}.")
        return texts


def read_texts(entries: Sequence[Any]) -> list[str]:
    """All files, in the order of their names, and then documents of datasets.

    Raises:
        ValueError: if a pattern fits none or a file that is no text, or a dataset has none.
        FileNotFoundError: if a dataset cannot be read.
    """
    files: list[str] = []
    datasets = [(TextDataset.of(entry), title(entry)) for entry in entries if is_dataset(entry)]
    for pattern in (entry for entry in entries if not is_dataset(entry)):
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise ValueError(
                f"`texts` or `words` names {pattern!r}, but there is no such file; see recipes/debian_texts.py for "
                "some."
            )
        files += found
    texts = [_text_of(file) for file in dict.fromkeys(files)]
    return texts + [text for dataset, name in datasets for text in dataset.read(name)]


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(
            f"`texts` or `words` names {file!r}, which is no text in UTF-8; convert it, or name other files."
        ) from error


def is_dataset(entry: Any) -> bool:
    """Whether an entry of `texts` is one of these, not a pattern of files."""
    return not isinstance(entry, str) or entry.startswith(PREFIX)


def title(entry: Any) -> str:
    """An entry of `texts` in a word."""
    return entry if isinstance(entry, str) else str(entry.get("path"))
