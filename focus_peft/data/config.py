"""What training data is made of: the entries of `data` in a recipe's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..fields import COUNT, SIZE, SIZE_OR_NONE, WEIGHT, built


# A source with this path hides made-up facts in the documents of another source
FACTS = "synthetic:facts"


@dataclass
class SourceConfig:
    """One source of documents.

    Attributes:
        path (`str`):
            A dataset's name on the Hub; or a local file, folder or glob. `.jsonl`, `.json`, `.csv`, `.tsv` and
            `.parquet` hold rows, anything else is one document a file; `.gz`, `.bz2`, `.xz` and `.zst` are unpacked. A
            folder is searched for files, hidden and binary ones left out. A local folder with a `name`, a `split` or
            `streaming` is read as `datasets.load_dataset` reads it, and one that `save_to_disk` wrote as
            `datasets.load_from_disk` does. "synthetic:facts" hides made-up facts in the documents of another source.
        name (`str`, *optional*): The dataset's configuration (subset).
        split (`str`, *optional*): The dataset's split. Defaults to "train"; a local folder without it is read file by
            file, whatever splits they belong to.
        text_column (`str`): The column of rows that holds the document. Defaults to "text".
        instruction_column, answer_column (`str`, *optional*):
            Columns of an instruction and its answer, in place of a text; only the answer's tokens are labels.
        weight (`float`): The source's share of the samples of an epoch, relative to the other sources'. Defaults to 1.
            With 0, it is not trained on by itself, but may lend its documents to "synthetic:facts".
        streaming (`bool`): Read the dataset without downloading all of it. Needs `max_documents`. Defaults to False.
        max_documents (`int`, *optional*): Read the first so many documents. Defaults to all.
        revision (`str`, *optional*): The dataset's branch, tag or commit.
        documents (`int` or `str`, *optional*): For "synthetic:facts": the number (from 0) or path of the source to
            hide facts in.
        max_tokens (`int`, *optional*): In place of the `max_tokens` of the whole data, for this source.

    Raises:
        ValueError: if a field has a value that cannot work, or fields contradict each other.
    """

    path: str
    name: str | None = None
    split: str | None = None
    text_column: str = "text"
    instruction_column: str | None = None
    answer_column: str | None = None
    weight: float = 1.0
    streaming: bool = False
    max_documents: int | None = None
    revision: str | None = None
    documents: int | str | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(
                f"`path` of a source must be a dataset's name, a file, a folder or a glob, got {self.path!r}."
            )
        where = f"of the source {self.path!r}"
        WEIGHT.check(f"`weight` {where}", self.weight)
        SIZE_OR_NONE.check(f"`max_documents` {where}", self.max_documents)
        SIZE_OR_NONE.check(f"`max_tokens` {where}", self.max_tokens)
        if (self.instruction_column is None) != (self.answer_column is None):
            raise ValueError(
                f"`instruction_column` {where} is {self.instruction_column!r} and `answer_column` is "
                f"{self.answer_column!r}; give both, or neither."
            )
        if self.streaming and self.max_documents is None:
            raise ValueError(
                f"`streaming` {where} needs `max_documents`, because what is read is tokenized once and kept; say how "
                "many documents to read."
            )
        if self.is_synthetic != (self.documents is not None):
            raise ValueError(
                f"`documents` {where} is {self.documents!r}; it names the source that {FACTS!r} hides its facts in, "
                "and no other source takes it."
            )

    @property
    def is_synthetic(self) -> bool:
        return self.path == FACTS

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read: the text's, or the instruction's and the answer's."""
        if self.instruction_column is None or self.answer_column is None:
            return (self.text_column,)
        return (self.instruction_column, self.answer_column)


@dataclass
class LengthBand:
    """How many documents of some lengths to train on.

    Attributes:
        minimum, maximum (`int`): Lengths in tokens, both included.
        count (`int`, *optional*): So many of them, drawn by seed. None: all.

    Raises:
        ValueError: if the band is empty.
    """

    minimum: int
    maximum: int
    count: int | None = None

    def __post_init__(self) -> None:
        SIZE.check("`minimum` of a length band", self.minimum)
        SIZE.check("`maximum` of a length band", self.maximum)
        SIZE_OR_NONE.check("`count` of a length band", self.count)
        if self.maximum < self.minimum:
            raise ValueError(f"`maximum` of a length band ({self.maximum}) is below its `minimum` ({self.minimum}).")


@dataclass
class DataConfig:
    """The data of a training run.

    Attributes:
        sources (`list[SourceConfig]`): Where documents come from. Entries may be given as dictionaries.
        bands (`list[LengthBand]`, *optional*):
            Only texts of these lengths are used, counted over all sources together. Instruction pairs are left alone.
            Where bands overlap, a text belongs to the first that has its length. Entries may be given as dictionaries.
        min_tokens, max_tokens (`int`):
            Shorter documents are left out. Longer ones are cut into pieces of `max_tokens`, of which the last is kept
            if it has `min_tokens`; instruction pairs, which cannot be cut, are left out. Defaults to 64 and 8192.
        held_out (`int`): So many documents, chosen by a hash of their text, are kept for evaluation. Defaults to 0.
        seed (`int`): Decides the order of documents, which ones are held out and which ones fill a band, and spans.
            Defaults to 0.
        cache_dir (`str`, *optional*): Where tokens are kept. Defaults to `focus_peft/data` in the Hugging Face home.
        num_proc (`int`, *optional*): Processes that tokenize. Defaults to this one, with the tokenizer's own threads.

    Raises:
        ValueError: if a field has a value that cannot work; the message names the field, the value and the remedy.

    Example:

    ```python
    from focus_peft.data import DataConfig, SourceConfig, prepare
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    data = prepare(DataConfig(sources=[SourceConfig("texts/*.md")], held_out=20, max_tokens=4096), tokenizer)
    print(data.report)
    ```
    """

    sources: list[SourceConfig]
    bands: list[LengthBand] | None = None
    min_tokens: int = 64
    max_tokens: int = 8192
    held_out: int = 0
    seed: int = 0
    cache_dir: str | None = None
    num_proc: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sources, (list, tuple)) or not self.sources:
            raise ValueError(f"`sources` must be a list of at least one source, got {self.sources!r}.")
        self.sources = [built(SourceConfig, source, "`sources`") for source in self.sources]
        if self.bands is not None:
            self.bands = [built(LengthBand, band, "`bands`") for band in self.bands]
            if not self.bands:
                raise ValueError("`bands` is an empty list; leave it out to use documents of every length.")
        SIZE.check("`min_tokens`", self.min_tokens)
        SIZE.check("`max_tokens`", self.max_tokens)
        COUNT.check("`held_out`", self.held_out)
        COUNT.check("`seed`", self.seed)
        SIZE_OR_NONE.check("`num_proc`", self.num_proc)
        limits = [self.limit(source) for source in self.sources]
        if self.min_tokens > min(limits):
            raise ValueError(
                f"`min_tokens` ({self.min_tokens}) is above `max_tokens` ({min(limits)}), so nothing would be left; "
                "make it smaller."
            )
        for band in self.bands or []:
            if band.minimum > max(limits) or band.maximum < self.min_tokens:
                raise ValueError(
                    f"`bands` has one of {band.minimum} to {band.maximum} tokens, but documents have `min_tokens` = "
                    f"{self.min_tokens} to `max_tokens` = {max(limits)}; change one of them."
                )
        if not any(source.weight for source in self.sources):
            raise ValueError("`weight` is 0 for every source; give at least one a weight above 0.")
        for source in self.sources:
            if source.is_synthetic:
                self.lender(source)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """From the mapping that a YAML file holds.

        Raises:
            ValueError: for a name that is no field, or a value that cannot work.
        """
        return built(cls, values, "`data`")

    def limit(self, source: SourceConfig) -> int:
        """The `max_tokens` of a source."""
        return self.max_tokens if source.max_tokens is None else source.max_tokens

    def lender(self, source: SourceConfig) -> int:
        """The number of the source that a "synthetic:facts" source hides its facts in.

        Raises:
            ValueError: if there is no such source.
        """
        numbers = [
            number
            for number, other in enumerate(self.sources)
            if source.documents in (number, other.path) and not other.is_synthetic and len(other.columns) == 1
        ]
        if not numbers or isinstance(source.documents, bool):
            raise ValueError(
                f"`documents` of the source {source.path!r} is {source.documents!r}, which is neither the number nor "
                f"the path of a source of texts; there are {[other.path for other in self.sources]}."
            )
        return numbers[0]
