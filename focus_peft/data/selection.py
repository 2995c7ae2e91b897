"""Which pieces are trained on and which are held out. Pure functions of the pieces and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .config import LengthBand


@dataclass(frozen=True)
class Selection:
    """The pieces in use, by number, for each source; and how many each band got.

    Attributes:
        train, held_out (`list[np.ndarray]`): Numbers of pieces, rising.
        bands (`list[int]`): Pieces in each band, for training.
    """

    train: list[np.ndarray]
    held_out: list[np.ndarray]
    bands: list[int]


def select(
    sources: Sequence[np.ndarray],
    is_text: Sequence[bool],
    bands: Sequence[LengthBand] | None,
    held_out: int,
    seed: int,
) -> Selection:
    """Choose pieces for training and for evaluation.

    What is chosen depends on the texts and the seed, not on the order of documents. All pieces of a held-out text are
    held out, wherever it occurs.

    Args:
        sources (`Sequence[np.ndarray]`): The pieces of each source, of the type `PIECE`.
        is_text (`Sequence[bool]`): Whether a source holds texts, which `bands` choose from.
        bands (`Sequence[LengthBand]`, *optional*): Counted over all sources together.
        held_out (`int`): Documents.
        seed (`int`): Decides where there is a choice.

    Returns:
        `Selection`.

    Raises:
        ValueError: if there are not more documents than are to be held out.
    """
    lengths = [len(pieces) for pieces in sources]
    pieces = np.concatenate(sources)
    is_banded = np.repeat([text and bool(bands) for text in is_text], lengths)
    band_of = np.where(is_banded, bands_of(pieces["length"], bands or []), 0)
    usable = band_of >= 0
    texts = np.unique(pieces["text"][usable])
    if held_out and held_out >= len(texts):
        raise ValueError(
            f"`held_out` is {held_out}, but there are {len(texts)} different documents that could be trained on; hold "
            "out fewer, or give more."
        )
    chosen = texts[np.argsort(scrambled(texts, seed), kind="stable")[:held_out]]
    is_held_out = usable & np.isin(pieces["text"], chosen)
    train, evaluation = usable & ~is_held_out, np.zeros_like(usable)
    numbers = np.flatnonzero(is_held_out)
    _, first = np.unique(pieces[["text", "part"]][numbers], return_index=True)
    evaluation[numbers[first]] = True  # a text that occurs twice is evaluated once

    counts = []
    for index, band in enumerate(bands or []):
        numbers = np.flatnonzero(train & is_banded & (band_of == index))
        keys = scrambled(pieces["text"][numbers], seed + 1, pieces["part"][numbers])
        picked = numbers[np.argsort(keys, kind="stable")[: band.count]]
        train[numbers], train[picked] = False, True
        counts.append(len(picked))

    def by_source(mask: np.ndarray) -> list[np.ndarray]:
        return [np.flatnonzero(own) for own in np.split(mask, np.cumsum(lengths)[:-1])]

    return Selection(by_source(train), by_source(evaluation), counts)


def bands_of(lengths: np.ndarray, bands: Sequence[LengthBand]) -> np.ndarray:
    """For each length the number of the first band that holds it, or -1."""
    result = np.full(len(lengths), -1, dtype=np.int64)
    for index, band in enumerate(bands):
        result[(result < 0) & (lengths >= band.minimum) & (lengths <= band.maximum)] = index
    return result


def scrambled(hashes: np.ndarray, seed: int, parts: np.ndarray | None = None) -> np.ndarray:
    """Hashes of uint64 whose order has nothing to do with that of `hashes`, but is fixed by the seed (splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = hashes ^ np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
        if parts is not None:
            mixed = mixed + parts.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return mixed ^ (mixed >> np.uint64(31))
