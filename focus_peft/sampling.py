"""Pure functions: how the spans of the two losses are drawn from a document (paper section 3.3, released `train.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .config import FocusConfig
from .settings import Settings


# What is no label
IGNORE = -100
# The paper's chunk sizes, and 512, which its list lacks
CHUNK_SIZES = (64, 128, 256, 512, 1024, 2048)
# The least local tokens before the labels, where the document has so many
LEAST_LOCAL = 30


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
class Sample:
    """What is drawn for one document.

    Attributes:
        memory (`int`): The first so many tokens are the memory.
        chunk_size (`int`): It is cut into chunks of this size.
        continuation (`Span`, *optional*): What follows the memory.
        repetition (`Span`, *optional*): A piece of the memory.
    """

    memory: int
    chunk_size: int
    continuation: Span | None
    repetition: Span | None


def generator_of(seed: int) -> torch.Generator:
    """A generator that draws the same for the same `seed`, such as a sample's own: 0 or above, up to 63 bits."""
    return torch.Generator().manual_seed(seed)


def draw_int(low: int, high: int, generator: torch.Generator | None) -> int:
    """A uniform integer, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def draw_sample(
    labelled: Sequence[bool], settings: Settings, config: FocusConfig, generator: torch.Generator | None
) -> Sample | None:
    """Draw a chunk size, the memory's end, and a span for each loss.

    The continuation's labels are placed in the second half of the document where there are any, so that the memory is long;
    the local window before them takes at most half of what precedes them.

    Args:
        labelled (`Sequence[bool]`): For each token of the document, whether it may be a label.
        settings (`Settings`): Its chunk and local sizes are upper bounds.
        config (`FocusConfig`): `loss`, the weights (a loss with weight 0 is not drawn) and `label_size`.
        generator (`torch.Generator`, *optional*): Default: torch's global one.

    Returns:
        `Sample`, or None if the document has no room for memory, local window and a label.
    """
    tokens = len(labelled)
    sizes = settings.sizes
    chunk_sizes = [size for size in CHUNK_SIZES if size <= sizes.chunk] or [sizes.chunk]
    size = chunk_sizes[draw_int(0, len(chunk_sizes) - 1, generator)]
    wants = [config.continuation_weight > 0, config.repetition_weight > 0]
    if config.loss == "draw" and all(wants):
        odds = config.continuation_weight / (config.continuation_weight + config.repetition_weight)
        first = float(torch.rand((), generator=generator)) < odds
        wants = [first, not first]

    # labels of the continuation: a memory token and a local token come before them
    continuation = _draw_span(
        labelled, 1, tokens, sizes.local, config.label_size, (tokens + 1) // 2, generator, share=2
    )
    if continuation is None:
        return None
    memory = continuation.start if wants[0] else tokens
    repetition = (
        _draw_span(labelled, 0, memory, sizes.local, config.label_size, 0, generator, share=1) if wants[1] else None
    )
    if not wants[0]:
        continuation = None
    if continuation is None and repetition is None:
        return None
    return Sample(memory, size, continuation, repetition)


def _draw_span(
    labelled: Sequence[bool],
    low: int,
    high: int,
    local_size: int,
    label_size: int,
    preferred: int,
    generator: torch.Generator | None,
    share: int,
) -> Span | None:
    """A span inside [low, high) with at least one label, its labels from `preferred` on if there are any there.

    The local window takes at most a `share`-th of the tokens between `low` and the labels.
    """
    labels = min(label_size, max(1, (high - low) // 2))
    counts = torch.tensor([0, *labelled], dtype=torch.long).cumsum(0)
    if high - labels <= low:
        return None
    firsts = torch.arange(low + 1, high - labels + 1)
    firsts = firsts[counts[firsts + labels] > counts[firsts]]
    if not len(firsts):
        return None
    late = firsts[firsts >= preferred]
    firsts = late if len(late) else firsts
    first = int(firsts[draw_int(0, len(firsts) - 1, generator)])
    most = min(local_size, max(1, (first - low) // share))
    local = draw_int(min(LEAST_LOCAL, most), most, generator)
    return Span(first - local, local, labels)
