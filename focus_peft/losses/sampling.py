"""Pure functions: how the spans of the two losses are drawn from a document (paper section 3.3, released
`train.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..passes.settings import Settings


# The paper's chunk sizes, and 512, which its list lacks
CHUNK_SIZES = (64, 128, 256, 512, 1024, 2048)
# The least local tokens before the labels, where the document has so many
LEAST_LOCAL = 30
# Evaluation without a generator draws the same spans every time
EVALUATION_SEED = 0


@dataclass(frozen=True)
class Span:
    """A local window and its labels: `local` tokens from `start` on, then `labels` tokens to be predicted.

    The last local token predicts the first label; a label predicts the next.
    """

    start: int
    local: int
    labels: int

    @property
    def first_label(self) -> int:
        return self.start + self.local

    @property
    def end(self) -> int:
        return self.first_label + self.labels


@dataclass(frozen=True)
class Seats:
    """Where a document's chunks stand among distractors, which take all other places from `begin` to `end`.

    Attributes:
        begin, end (`int`): The first place, and the one after the last.
        own (`tuple[int, ...]`): The places of the document's own chunks, ascending.
    """

    begin: int
    end: int
    own: tuple[int, ...]

    @classmethod
    def alone(cls, chunks: int) -> Seats:
        """No distractors."""
        return cls(0, chunks, tuple(range(chunks)))

    @property
    def others(self) -> list[int]:
        """The places of the distractors."""
        return [place for place in range(self.begin, self.end) if place not in self.own]

    @property
    def order(self) -> list[int]:
        """For each place, which row it has when own chunks come first and the distractors after them."""
        rows = {place: row for row, place in enumerate([*self.own, *self.others])}
        return [rows[place] for place in range(self.begin, self.end)]


@dataclass(frozen=True)
class Sample:
    """What is drawn for one document.

    Attributes:
        memory (`int`): The first so many tokens are the memory.
        chunk_size (`int`): It is cut into chunks of this size.
        continuation (`Span`, *optional*): What follows the memory.
        repetition (`Span`, *optional*): A piece of the memory.
        seats (`Seats`, *optional*): Where the chunks of the memory stand among distractors. None: there are none.
    """

    memory: int
    chunk_size: int
    continuation: Span | None
    repetition: Span | None
    seats: Seats | None = None


def generator_of(seed: int) -> torch.Generator:
    """A generator that draws the same for the same `seed`, such as a sample's own: 0 or above, up to 63 bits."""
    return torch.Generator().manual_seed(seed)


def row_generators(
    rows: int, generator: torch.Generator | None, sample_seeds: torch.Tensor | None, training: bool
) -> list[torch.Generator | None]:
    """The generator that draws each row's spans: one for all of them, or one for each.

    Args:
        rows (`int`): Rows of the batch.
        generator (`torch.Generator`, *optional*): For all. Default: torch's global one in training, a fixed seed in
            evaluation.
        sample_seeds (`torch.LongTensor` of shape (rows,), *optional*): A seed for each row, instead.
        training (`bool`): Whether the model is in training mode.

    Raises:
        ValueError: if both are given, or there is not one seed for each row.
    """
    if sample_seeds is None:
        if generator is None and not training:
            generator = generator_of(EVALUATION_SEED)
        return [generator] * rows
    if generator is not None:
        raise ValueError(
            "`generator` and `sample_seeds` exclude each other; both draw the spans. Leave one of them out."
        )
    if sample_seeds.shape != (rows,) or sample_seeds.is_floating_point():
        raise ValueError(
            f"`sample_seeds` must hold one integer for each of the {rows} rows, got a tensor of {sample_seeds.dtype} "
            f"and shape {tuple(sample_seeds.shape)}."
        )
    return [generator_of(seed) for seed in sample_seeds.tolist()]


def draw_int(low: int, high: int, generator: torch.Generator | None) -> int:
    """A uniform integer, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def least_chunk_size(settings: Settings) -> int:
    """No chunk size that is drawn is smaller."""
    return min(settings.config.train_min_chunk_size or min(CHUNK_SIZES), settings.sizes.chunk)


def draw_seats(own: int, distractors: int, generator: torch.Generator | None) -> Seats:
    """Draw how many of some distractors are there, which, and where a document's chunks stand among them.

    Small numbers are as likely as large ones (log-uniform), so that most samples stay cheap. Each distractor has a
    place of its own, as it was read there; so the places are neighbors that begin anywhere, and the document's chunks
    take some of them over.

    Args:
        own (`int`): Chunks of the document.
        distractors (`int`): Distractors that could be there, at the places from 0 on.
        generator (`torch.Generator`, *optional*): Default: torch's global one.
    """
    if own >= distractors:
        return Seats.alone(own)
    most = distractors - own
    places = own + int((most + 2) ** float(torch.rand((), generator=generator))) - 1
    begin = draw_int(0, distractors - places, generator)
    taken = torch.randperm(places, generator=generator)[:own].sort().values
    return Seats(begin, begin + places, tuple((begin + taken).tolist()))


def draw_sample(
    labeled: Sequence[bool],
    settings: Settings,
    generator: torch.Generator | None,
    distractors: int = 0,
) -> Sample | None:
    """Draw a chunk size, the memory's end, a span for each loss, and the places of distractors.

    The continuation's labels are placed in the second half of the document where there are any, so that the memory is
    long; the local window before them takes at most half of what precedes them.

    Args:
        labeled (`Sequence[bool]`): For each token of the document, whether it may be a label.
        settings (`Settings`): Its chunk and local sizes are upper bounds; its configuration has `loss`, the weights (a
            loss with weight 0 is not drawn), `label_size`, `train_local_size` and `train_min_chunk_size`.
        generator (`torch.Generator`, *optional*): Default: torch's global one.
        distractors (`int`): Distractors that could be there. Only chunks of the largest size stand among them.

    Returns:
        `Sample`, or None if the document has no room for memory, local window and a label.
    """
    tokens = len(labeled)
    sizes, config = settings.sizes, settings.config
    least = least_chunk_size(settings)
    chunk_sizes = [size for size in CHUNK_SIZES if least <= size <= sizes.chunk] or [sizes.chunk]
    size = chunk_sizes[draw_int(0, len(chunk_sizes) - 1, generator)]
    wants = [config.continuation_weight > 0, config.repetition_weight > 0]
    if config.loss == "draw" and all(wants):
        odds = config.continuation_weight / (config.continuation_weight + config.repetition_weight)
        first = float(torch.rand((), generator=generator)) < odds
        wants = [first, not first]

    longest = config.train_local_size or sizes.local
    # labels of the continuation: a memory token and a local token come before them
    continuation = _draw_span(labeled, 1, tokens, longest, config.label_size, (tokens + 1) // 2, generator, share=2)
    if continuation is None:
        return None
    memory = continuation.start if wants[0] else tokens
    repetition = (
        _draw_span(labeled, 0, memory, longest, config.label_size, 0, generator, share=1) if wants[1] else None
    )
    if not wants[0]:
        continuation = None
    if continuation is None and repetition is None:
        return None
    among = distractors if size == sizes.chunk else 0
    seats = draw_seats(-(-memory // size), among, generator) if among else None
    return Sample(memory, size, continuation, repetition, seats)


def _draw_span(
    labeled: Sequence[bool],
    low: int,
    high: int,
    local_size: int,
    label_size: int,
    preferred: int,
    generator: torch.Generator | None,
    share: int,
) -> Span | None:
    """A span inside [low, high) with at least one label, its labels from `preferred` on if there are any there.

    Where labels are few, such as those of a short answer, spans with less than half as many as the fullest are not
    drawn, and a span starts and ends with a label. The local window takes at most a `share`-th of the tokens between
    `low` and the labels.
    """
    labels = min(label_size, max(1, (high - low) // 2))
    counts = torch.tensor([0, *labeled], dtype=torch.long).cumsum(0)
    if high - labels <= low:
        return None
    firsts = torch.arange(low + 1, high - labels + 1)
    firsts = firsts[counts[firsts + labels] > counts[firsts]]
    if not len(firsts):
        return None
    late = firsts[firsts >= preferred]
    firsts = late if len(late) else firsts
    inside = counts[firsts + labels] - counts[firsts]
    firsts = firsts[2 * inside >= inside.max()]
    drawn = int(firsts[draw_int(0, len(firsts) - 1, generator)])
    places = [place for place in range(drawn, drawn + labels) if labeled[place]]
    first, labels = places[0], places[-1] - places[0] + 1
    most = min(local_size, max(1, (first - low) // share))
    local = draw_int(min(LEAST_LOCAL, most), most, generator)
    return Span(first - local, local, labels)
