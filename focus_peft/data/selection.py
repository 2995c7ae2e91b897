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
    banded = [
        bands_of(pieces["length"], bands) if bands and text else np.zeros(len(pieces), np.int64)
        for pieces, text in zip(sources, is_text)
    ]
    usable = [np.flatnonzero(band >= 0) for band in banded]
    texts = np.unique(np.concatenate([pieces["text"][use] for pieces, use in zip(sources, usable)]))
    if held_out and held_out >= len(texts):
        raise ValueError(
            f"`held_out` is {held_out}, but there are {len(texts)} different documents that could be trained on; hold "
            "out fewer, or give more."
        )
    chosen = texts[np.argsort(scrambled(texts, seed), kind="stable")[:held_out]]

    train, evaluation = [], []
    seen: set[tuple[int, int]] = set()
    for pieces, use in zip(sources, usable):
        out = np.isin(pieces["text"][use], chosen)
        train.append(use[~out])
        kept = []
        for number in use[out]:
            name = (int(pieces["text"][number]), int(pieces["part"][number]))
            if name not in seen:  # a text that occurs twice is evaluated once
                seen.add(name)
                kept.append(number)
        evaluation.append(np.array(kept, dtype=np.int64))
    if not bands:
        return Selection(train, evaluation, [])

    counts = []
    kept_of: list[list[np.ndarray]] = [[use] if not text else [] for use, text in zip(train, is_text)]
    for index, band in enumerate(bands):
        found = [
            use[banded[source][use] == index] if is_text[source] else np.zeros(0, np.int64)
            for source, use in enumerate(train)
        ]
        owner = np.repeat(np.arange(len(found)), [len(numbers) for numbers in found])
        numbers = np.concatenate(found)
        keys = np.concatenate(
            [scrambled(pieces["text"][some], seed + 1, pieces["part"][some]) for pieces, some in zip(sources, found)]
        )
        picked = np.argsort(keys, kind="stable")[: band.count]
        counts.append(len(picked))
        for source, kept_here in enumerate(kept_of):
            kept_here.append(numbers[picked][owner[picked] == source])
    return Selection([np.sort(np.concatenate(kept_here)) for kept_here in kept_of], evaluation, counts)


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
