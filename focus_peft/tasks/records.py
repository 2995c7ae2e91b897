"""Tasks whose samples are records of published files, one JSON object a line.

The files come from the Hub through `huggingface_hub`, which runs no code of a data set's repository, or from a folder
that holds the originals. A prompt that must be shorter than its record is cut in the middle, as in LongBench's
`pred.py`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from huggingface_hub import hf_hub_download

from ..hub.errors import hub_reason
from .samples import Draft, Sample, Source
from .task import Task


Measure = Callable[..., float]


@dataclass(frozen=True)
class Benchmark:
    """Where the files of some tasks are.

    Attributes:
        name (`str`): What names of its tasks begin with, and its key in `Source.data`.
        title (`str`): As it is written.
        repo (`str`): The data set on the Hub.
        archive (`str`, *optional*): The ZIP file in it that holds the files. Without one, they lie in it as they are.
    """

    name: str
    title: str
    repo: str
    archive: str | None = None


class RecordFacts(NamedTuple):
    """How many records a file has, its bytes, and a digest of them."""

    records: int
    size: int
    digest: str


@dataclass(frozen=True)
class RecordFile:
    """A file of records.

    Attributes:
        path (`Path`): The file, or the ZIP file that it is in.
        member (`str`, *optional*): Its name there.
    """

    path: Path
    member: str | None = None

    def lines(self) -> Iterator[bytes]:
        """Its lines, empty ones left out."""
        place = self.path if self.member is None else zipfile.Path(self.path, self.member)
        with place.open("rb") as file:
            yield from (line for line in file if line.strip())

    def facts(self) -> RecordFacts:
        """What is known of it without parsing a record."""
        found, records, size = hashlib.sha256(), 0, 0
        for line in self.lines():
            found.update(line)
            records, size = records + 1, size + len(line)
        return RecordFacts(records, size, found.hexdigest()[:16])

    def record(self, number: int) -> dict[str, Any]:
        """One record.

        Raises:
            ValueError: if the line is not a JSON object.
        """
        line = _lines(self, self.path.stat().st_mtime_ns)[number]
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Record {number + 1} of {self} is not JSON: {error}; get the file anew.") from error
        if not isinstance(values, dict):
            raise ValueError(f"Record {number + 1} of {self} is {values!r}, where a JSON object belongs.")
        return values

    def __str__(self) -> str:
        return repr(str(self.path)) if self.member is None else f"{self.member!r} in {str(self.path)!r}"


@lru_cache(maxsize=1)  # some files have half a gigabyte, and tasks are run one after another
def _lines(file: RecordFile, changed: int) -> list[bytes]:
    return list(file.lines())


def find_file(benchmark: Benchmark, name: str, place: str | None) -> RecordFile:
    """The file `name`.jsonl of a benchmark.

    Args:
        benchmark (`Benchmark`): Whose it is.
        name (`str`): Without the benchmark's name.
        place (`str`, *optional*): A folder with the original files (or with a folder `data` of them), or the ZIP file.
            Defaults to the Hub.

    Raises:
        ValueError: if it is not there, or the Hub cannot be asked and there is no copy on this machine.
    """
    file = f"{name}.jsonl"
    if place is None:
        found = _from_hub(benchmark, benchmark.archive or file)
        return RecordFile(found) if benchmark.archive is None else _in_archive(found, file)
    folder = Path(place).expanduser()
    for path in (folder / file, folder / "data" / file):
        if path.is_file():
            return RecordFile(path)
    archive = folder if folder.is_file() else folder / (benchmark.archive or "")
    if archive.is_file():
        return _in_archive(archive, file)
    raise ValueError(
        f"`data.{benchmark.name}` is {place!r}, but there is no {file!r} in it; put the files of {benchmark.repo} "
        "there, or leave it out and they come from the Hub."
    )


@cache  # the Hub is asked for a file once
def _from_hub(benchmark: Benchmark, file: str) -> Path:
    try:
        return Path(hf_hub_download(benchmark.repo, file, repo_type="dataset"))
    except Exception as error:
        reason = hub_reason(error, benchmark.repo)
        if reason is None:
            raise
        raise ValueError(
            f"The file {file!r} of {benchmark.title} cannot be downloaded. {reason} Or get the files of the data set "
            f"{benchmark.repo} another way, and name their folder as `data.{benchmark.name}`."
        ) from error


def _in_archive(path: Path, file: str) -> RecordFile:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.rpartition("/")[2] == file]
    except zipfile.BadZipFile as error:
        raise ValueError(f"The file {str(path)!r} is no ZIP file; get it anew, or name a folder.") from error
    if not members:
        raise ValueError(f"The ZIP file {str(path)!r} has no {file!r} in it; get it anew, or leave out this task.")
    return RecordFile(path, min(members, key=len))


@dataclass(frozen=True)
class RecordTask(Task):
    """A task whose prompts are made of published records.

    Attributes:
        name (`str`): The benchmark's name, a slash, and that of the file.
        category (`str`): What it is averaged with, among tasks in the same language.
        language (`str`): "en", "zh", "code", which counts in both, or "" where averages are over all languages.
        new_tokens (`int`): Tokens that an answer may have, as published.
        metric (`str`): What is measured.
        measure (`Callable`): Measures it.
        prompt (`str`): The template that fields of a record are put into.
        is_binary (`bool`): Whether an answer is either right or wrong. Defaults to `False`.
        packages (`tuple[str, ...]`): Modules that the metric needs, by the names under which they are imported.
    """

    name: str
    category: str
    language: str
    new_tokens: int
    metric: str
    measure: Measure
    prompt: str
    is_binary: bool = False
    packages: tuple[str, ...] = ()

    benchmark: ClassVar[Benchmark]
    fields: ClassVar[tuple[str, ...]]

    @property
    def short_name(self) -> str:
        """Without the benchmark's."""
        return self.name.partition("/")[2]

    def file(self, data: Mapping[str, str]) -> RecordFile:
        """Its records; see [`find_file`] for `data[benchmark]` and what is raised."""
        return find_file(self.benchmark, self.short_name, data.get(self.benchmark.name))

    def check_packages(self) -> None:
        """Raise an `ImportError` if the metric needs a package that is not there."""
        for name in self.packages:
            needed(name, f"The metric of `{self.name}`")

    def sample(self, source: Source, tokens: int | None, number: int, samples: int) -> Sample:
        """The prompt of a record.

        Args:
            source (`Source`): Its `data` says where records are.
            tokens (`int`, *optional*): A prompt that has more with its answer is cut in the middle. None: all are
                whole.
            number (`int`): Which of the samples.
            samples (`int`): They are spread evenly over all records.

        Raises:
            ValueError: if a record lacks a field, there are fewer than `samples`, or `tokens` has no room for a
                prompt.
        """
        file = self.file(source.data)
        count = len(_lines(file, file.path.stat().st_mtime_ns))
        if samples > count:
            raise ValueError(f"`samples` is {samples}, but {file} has {count} records; give at most so many.")
        place = number * count // samples
        record = file.record(place)
        missing = [name for name in self.fields if name not in record]
        if missing:
            raise ValueError(f"Record {place + 1} of {file} has no `{missing[0]}`; get the file anew.")
        try:
            draft = self.draft(record)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"Record {place + 1} of {file} is not as published ({error!r}); get the file anew."
            ) from error
        ids, classes = source.ids(draft), tuple(record.get("all_classes") or ())
        cut = tokens is not None and len(ids) > tokens - self.new_tokens
        if tokens is not None and cut:
            ids = cut_in_the_middle(source, draft, ids, tokens - self.new_tokens)
        return Sample(ids, draft.references, classes=classes, cut=cut)

    @abstractmethod
    def draft(self, record: Mapping[str, Any]) -> Draft:
        """A record within its prompt, and its references."""


def cut_in_the_middle(source: Source, draft: Draft, ids: list[int], limit: int) -> list[int]:
    """At most `limit` ids of a prompt that has more, without the middle of its text.

    What is left is decoded and goes into the chat template, if there is one, as in `pred.py`; here the template
    counts.

    Args:
        source (`Source`): Tokenizes.
        draft (`Draft`): The prompt.
        ids (`list[int]`): All of it.
        limit (`int`): Tokens.

    Raises:
        ValueError: if there is no room for any of it.
    """
    text = source.tokenizer(draft.text, add_special_tokens=False, verbose=False)["input_ids"]
    keep = min(len(text), limit - (len(ids) - len(text)))
    while True:
        half = keep // 2
        if half < 1:
            raise ValueError(f"`tokens` leaves {limit} for the prompt, which is too few; give more.")
        ends = (source.tokenizer.decode(part, skip_special_tokens=True) for part in (text[:half], text[-half:]))
        ids = source.ids(replace(draft, text="".join(ends)))
        if len(ids) <= limit:
            return ids
        keep -= len(ids) - limit  # tokens are others at the seam


def needed(name: str, what: str) -> Any:
    """A module that only some evaluations need.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise ImportError(
            f"{what} needs the package {package}; install it with `pip install 'focus_peft[eval]'`."
        ) from error
