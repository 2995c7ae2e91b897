"""From a configuration to datasets: read, tokenize once, choose, mix; and a report of what became of it all."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from accelerate.state import PartialState
from transformers import PreTrainedTokenizerBase

from .cache import TokenTable, cache_key, default_cache_dir, load_table, write_table
from .config import DataConfig, SourceConfig
from .fact_samples import FactsPart
from .files import BINARY, BROKEN, UNDECODABLE
from .mixture import HeldOutDataset, MixedDataset, Part, TablePart
from .selection import Selection, select
from .sources import EMPTY, WITHOUT_TEXT
from .tokenizing import ENDS, LONG, SHORT, Encoder, tokenizer_fingerprint


logger = logging.getLogger(__name__)


@dataclass
class SourceReport:
    """What became of a source.

    Attributes:
        path (`str`): As configured.
        documents (`int`): Documents with a text.
        pieces, tokens (`int`): What they were cut into, before bands and held-out documents.
        train, held_out (`int`): Pieces that are trained on, or kept for evaluation.
        left_out (`dict[str, int]`): How much was left out, by reason.
    """

    path: str
    documents: int
    pieces: int
    tokens: int
    train: int
    held_out: int
    left_out: dict[str, int]


@dataclass
class DataReport:
    """Counts of all sources, and the pieces in each length band.

    A "synthetic:facts" source, which has no documents of its own, has no entry.
    """

    sources: list[SourceReport]
    bands: list[int]


@dataclass
class PreparedData:
    """What `prepare` returns.

    Attributes:
        train (`MixedDataset`): Call its `set_epoch` at the start of every epoch.
        held_out (`HeldOutDataset`): Empty if nothing was to be held out.
        report (`DataReport`): Counts.
    """

    train: MixedDataset
    held_out: HeldOutDataset
    report: DataReport


def prepare(config: DataConfig, tokenizer: PreTrainedTokenizerBase, chat_template: bool = True) -> PreparedData:
    """Read and tokenize the sources, or find their tokens in the cache, and mix them.

    Among several processes the main one reads first, and the others find what it has cached; if that takes longer than
    the process group's timeout, raise `ddp_timeout`, or prepare once in a single process.

    Args:
        config (`DataConfig`): The sources.
        tokenizer: The model's.
        chat_template (`bool`): Write instruction pairs with the tokenizer's chat template, if it has one. Without:
            instruction, an empty line, answer, with the tokenizer's special tokens and an end-of-sequence token.

    Returns:
        `PreparedData`: datasets for training and evaluation, and a report.

    Raises:
        FileNotFoundError: if a source is not there.
        ValueError: if a source lacks its column, or nothing is left of it; the message says what was left out and what
            to do.
        ImportError: if a package is missing that a source needs.
        OSError: if the cache cannot be written.
    """
    fingerprint = tokenizer_fingerprint(tokenizer)
    state = PartialState()
    # the main process, then that of every other machine, which may not see the first one's disk, then the rest
    with state.main_process_first(), state.local_main_process_first():
        tables = {
            number: _table(
                source,
                config,
                Encoder(tokenizer, chat_template, config.min_tokens, config.limit(source)),
                fingerprint,
            )
            for number, source in enumerate(config.sources)
            if not source.is_synthetic
        }
    numbers = list(tables)
    selection = select(
        [tables[number].pieces for number in numbers],
        [config.sources[number].answer_column is None for number in numbers],
        config.bands,
        config.held_out,
        config.seed,
    )
    report = _report(config, tables, selection)
    if state.is_main_process:
        _warn(config, report)
    train = {number: TablePart(tables[number], chosen) for number, chosen in zip(numbers, selection.train)}
    held_out = [TablePart(tables[number], chosen) for number, chosen in zip(numbers, selection.held_out)]
    parts: list[Part] = []
    weights = []
    for number, source in enumerate(config.sources):
        if not source.weight:
            continue
        lender = train[config.lender(source) if source.is_synthetic else number]
        if not len(lender):
            raise ValueError(_nothing_chosen(config, source))
        parts.append(FactsPart(lender, tokenizer, config.limit(source)) if source.is_synthetic else lender)
        weights.append(source.weight)
    return PreparedData(MixedDataset(parts, weights, config.seed), HeldOutDataset(held_out, config.seed), report)


def _table(source: SourceConfig, config: DataConfig, encoder: Encoder, fingerprint: str) -> TokenTable:
    """A source's tokens, from the cache if they are there."""
    parent = default_cache_dir() if config.cache_dir is None else Path(config.cache_dir).expanduser()
    directory = parent / cache_key(source, encoder.fingerprint(fingerprint))
    table = load_table(directory)
    if table is not None:
        return table
    counts = write_table(directory, source, encoder, config.num_proc)
    table = load_table(directory)
    if table is None:
        raise ValueError(_nothing_left(config, source, counts))
    return table


def _report(config: DataConfig, tables: dict[int, TokenTable], selection: Selection) -> DataReport:
    return DataReport(
        [
            SourceReport(
                config.sources[number].path,
                table.documents,
                len(table.pieces),
                int(table.pieces["length"].sum()),
                len(train),
                len(held_out),
                dict(table.counts),
            )
            for (number, table), train, held_out in zip(tables.items(), selection.train, selection.held_out)
        ],
        selection.bands,
    )


def _warn(config: DataConfig, report: DataReport) -> None:
    for source in report.sources:
        left_out = {reason: count for reason, count in source.left_out.items() if reason != ENDS}
        if left_out:
            logger.warning(
                "Left out of the source %r, which has %s documents: %s.",
                source.path,
                source.documents,
                _listed(left_out),
            )
    for band, count in zip(config.bands or [], report.bands):
        if band.count is not None and count < band.count:
            logger.warning(
                "There are %s texts of %s to %s tokens, fewer than the %s that `bands` asks for; all are used.",
                count, band.minimum, band.maximum, band.count,
            )  # fmt: skip


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def _nothing_left(config: DataConfig, source: SourceConfig, counts: Counter[str]) -> str:
    remedies = {
        SHORT: f"make `min_tokens` ({config.min_tokens}) smaller",
        LONG: f"make `max_tokens` ({config.limit(source)}) larger",
        BROKEN: "write one JSON object a line, or a table whose rows have all fields",
        UNDECODABLE: "convert the files to UTF-8",
        BINARY: "name text files",
        EMPTY: "name a column that holds the text, or files that have some",
        WITHOUT_TEXT: "name a column that holds the text",
    }
    most = max(counts, key=lambda reason: counts[reason], default="")
    return (
        f"Nothing is left of the source {source.path!r}; left out: {_listed(counts) or 'nothing, it is empty'}. "
        f"To use it, {remedies.get(most, 'check its `path` and `split`')}."
    )


def _nothing_chosen(config: DataConfig, source: SourceConfig) -> str:
    bands = ", ".join(f"{band.minimum} to {band.maximum}" for band in config.bands or [])
    lengths = f"`bands` ({bands} tokens) and " if bands else ""
    return (
        f"Of the source {source.path!r}, {lengths}`held_out` ({config.held_out} documents) leave nothing to train on; "
        "change them, or give more documents."
    )
