"""Map-style datasets whose order and whose samples' seeds are pure functions of (seed, epoch)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from ..config import IGNORE
from ..fields import COUNT
from .cache import TokenTable


# What one item holds: `input_ids` and `labels` (lists of int of one length), `sample_seed` (int) and maybe `evidence`
# (pairs of places: of a label, and of a token that tells it)
Item = dict[str, Any]


class Part(Protocol):
    """The samples of one source."""

    def __len__(self) -> int: ...

    def item(self, number: int, seed: int) -> Item:
        """One sample; `seed` decides whatever is drawn for it."""


class TablePart:
    """Some of the pieces of a table."""

    def __init__(self, table: TokenTable, numbers: np.ndarray) -> None:
        self.table, self.numbers = table, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, number: int, seed: int = 0) -> Item:
        piece = self.numbers[number]
        ids, start = self.table.ids(piece), int(self.table.pieces["first_label"][piece])
        return {"input_ids": ids, "labels": [IGNORE] * start + ids[start:]}


def quotas(weights: Sequence[float], total: int) -> list[int]:
    """How many of `total` samples each source gives: its share by weight, rounded so that the sum is `total`."""
    exact = [weight / sum(weights) * total for weight in weights]
    result = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda source: (result[source] - exact[source], source))
    for source in by_rest[: total - sum(result)]:
        result[source] += 1
    return result


def epoch_order(
    sizes: Sequence[int], weights: Sequence[float], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The order of an epoch.

    An epoch has as many samples as all sources have together, shared out by weight. A source goes through its samples
    in a seeded order, and when it is through, in another; where an epoch ends, the next goes on. Sources are
    interleaved evenly, so that every stretch of an epoch has about the right shares.

    Args:
        sizes (`Sequence[int]`): Samples of each source, at least 1.
        weights (`Sequence[float]`): Above 0.
        seed, epoch (`int`): Both 0 or above.

    Returns:
        The source of each sample, and its number there: two arrays of shape (samples,).
    """
    shares = quotas(weights, sum(sizes))
    keys, owners, numbers = [], [], []
    for source, (size, share) in enumerate(zip(sizes, shares)):
        positions = np.arange(epoch * share, (epoch + 1) * share, dtype=np.int64)
        chosen = np.zeros(share, dtype=np.int64)
        rounds = positions // size
        for round_ in np.unique(rounds):
            order = np.random.default_rng([seed, source, int(round_)]).permutation(size)
            here = rounds == round_
            chosen[here] = order[positions[here] % size]
        jitter = np.random.default_rng([seed, source, epoch, 1]).random(share)
        keys.append((np.arange(share) + jitter) / max(1, share))
        owners.append(np.full(share, source, dtype=np.int64))
        numbers.append(chosen)
    order = np.argsort(np.concatenate(keys), kind="stable")
    return np.concatenate(owners)[order], np.concatenate(numbers)[order]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """63 bits for the sample at a place of an epoch: the same whatever batch, process or run it is seen in."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Samples(Dataset):
    """Samples of several sources in some order. Each has a seed of its own in each epoch.

    Items are dictionaries with `input_ids` and `labels` (lists of int of one length, -100 is no label) and
    `sample_seed` (int).
    """

    epoch: int

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        self.parts, self.seed = list(parts), seed
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None

    def ordered(self, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Source, and number in the source, of each sample of the current epoch: two arrays of shape (samples,)."""
        raise NotImplementedError

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Item:
        index, epoch = _checked(index, len(self)), self.epoch
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, *self.ordered([len(part) for part in self.parts]))
        _, sources, numbers = self._order
        seed = sample_seed(self.seed, epoch, index)
        return {**self.parts[sources[index]].item(int(numbers[index]), seed), "sample_seed": seed}


class HeldOutDataset(Samples):
    """Documents for evaluation, in a fixed order and with the same spans at every evaluation; see [`Samples`].

    Args:
        parts (`Sequence[Part]`): Samples of each source.
        seed (`int`): Decides the samples' seeds.
    """

    epoch = -1  # which training does not have

    def ordered(self, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])


class MixedDataset(Samples):
    """Training samples of several sources, mixed by weight, in a new order with new seeds in every epoch; see
    [`Samples`].

    Args:
        parts (`Sequence[Part]`): Samples of each source; none is empty.
        weights (`Sequence[float]`): Above 0.
        seed (`int`): Decides order and seeds.
    """

    def __init__(self, parts: Sequence[Part], weights: Sequence[float], seed: int) -> None:
        super().__init__(parts, seed)
        self.weights = list(weights)
        # shared with the DataLoader's workers, which may outlive an epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:  # type: ignore[override]
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, counted from 0. A callback must call it: `accelerate` does so in a single process only."""
        COUNT.check("`epoch`", epoch)
        self._epoch.fill_(epoch)

    def ordered(self, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return epoch_order(sizes, self.weights, self.seed, self.epoch)


def _checked(index: int, length: int) -> int:
    index = int(index)
    if not -length <= index < length:
        raise IndexError(f"`index` is {index}, but there are {length} samples.")
    return index % length
