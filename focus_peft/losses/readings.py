"""What is read for each document of a batch: which windows behind which memory, and where a process only keeps step.

Under DDP, ZeRO and FSDP processes wait for each other, so a process reads something, with weight 0, where its document
has no room for a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import IGNORE, FocusConfig
from ..passes.chunking import with_bos
from ..passes.distributed import is_distributed
from ..passes.settings import Settings
from .documents import Document
from .sampling import Sample, Seats, Span


# What a process reads for a document without room for a span: ZeRO adds up gradients in the order in which they come,
# so every process needs a graph to all twins, and sharded weights need every process in every pass
IDLE = Sample(memory=2, chunk_size=2, continuation=Span(2, 2, 2), repetition=Span(2, 2, 2))


@dataclass(frozen=True, eq=False)
class Window:
    """A local window in training: `ids` up to the last token that predicts a label; the last `labels` of them do."""

    ids: list[int]
    labels: int

    @property
    def before(self) -> int:
        """Tokens up to and including the one that predicts the first label: the local window of the paper."""
        return len(self.ids) - self.labels + 1

    def prompt(self, settings: Settings, chunk_size: int, newest: int) -> list[int]:
        """The dynamic prompt: the last min(P, c, L) tokens before the first label, and the candidates' tokens
        after.
        """
        size = min(settings.sizes.prompt, chunk_size, self.before)
        prompt = with_bos(self.ids[self.before - size : self.before], settings.bos)
        following = self.ids[self.before : self.before + newest - 1]
        # a window with fewer labels than another's repeats its last token; nobody looks at what that candidate becomes
        return prompt + following + self.ids[-1:] * (newest - 1 - len(following))


@dataclass
class LabeledWindow:
    """A local window and its labels.

    Attributes:
        loss (`str`, *optional*): "continuation" or "repetition". None: it is read to keep step, and counts nothing.
        window (`Window`): The local window.
        labels (`Sequence[int]`): What it predicts; -100 is ignored.
        holders (`Sequence[tuple[int, int]]`): Pairs of the number of a label and that of a chunk that holds it, as far
            as this is known.
    """

    loss: str | None
    window: Window
    labels: Sequence[int]
    holders: Sequence[tuple[int, int]] = ()


@dataclass
class Reading:
    """What is read of one document: windows behind one memory."""

    memory: Sequence[int]
    chunk_size: int
    seats: Seats | None
    windows: list[LabeledWindow]


def readings_of(documents: Sequence[Document], config: FocusConfig, sharded: bool) -> list[Reading]:
    """What a process reads for its documents.

    Args:
        documents (`Sequence[Document]`): The batch of this process.
        config (`FocusConfig`): Says which losses there are.
        sharded (`bool`): Whether all processes must make the same passes in the same order (ZeRO-3, FSDP).
    """
    readings = []
    for document in documents:
        if document.sample is not None:
            ids, labels, sample, idle = document.ids, document.labels, document.sample, False
        elif is_distributed():
            ids, labels = list(document.ids[:1]) * IDLE.memory * 3, [IGNORE] * IDLE.memory * 3
            sample, idle = IDLE, True
        else:
            continue
        drawn = (("continuation", sample.continuation), ("repetition", sample.repetition))
        spans = [(None if idle else name, span) for name, span in drawn if span is not None]
        if sharded:  # as many windows as everybody reads, whether the document has room for both spans or not
            both = config.loss == "sum" and config.continuation_weight > 0 and config.repetition_weight > 0
            spans = (spans + [(None, spans[0][1])])[: 2 if both else 1]
        windows = [
            LabeledWindow(
                name,
                Window(list(ids[span.start : span.end - 1]), span.labels),
                labels[span.first_label : span.end],
                _holders(document, sample, name, span) if config.choice_weight else (),
            )
            for name, span in spans
        ]
        readings.append(Reading(ids[: sample.memory], sample.chunk_size, sample.seats, windows))
    return readings


def _holders(document: Document, sample: Sample, loss: str | None, span: Span) -> list[tuple[int, int]]:
    """(label of a span, chunk of the memory that holds it): what is repeated holds itself."""
    if loss is None:
        return []
    counts = [place for place in range(span.first_label, span.end) if document.labels[place] != IGNORE]
    itself = [(place, place) for place in counts] if loss == "repetition" else []
    told = [pair for pair in document.evidence if pair[0] in counts]
    return sorted(
        {
            (label - span.first_label, place // sample.chunk_size)
            for label, place in [*itself, *told]
            if place < sample.memory
        }
    )
