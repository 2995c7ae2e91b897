"""The two losses of the paper, continuation and repetition, and the distillation of the base model's own full reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput

from ..config import IGNORE, FocusConfig
from ..kv.store import sent
from ..passes.distributed import is_distributed
from ..passes.reader import Reader
from ..passes.settings import Settings
from .distractors import Distractors
from .sampling import Sample, Span
from .span_logits import Window, local_logits, span_logits, teacher_logits


# What a process reads for a document without room for a span, with weight 0: ZeRO adds up gradients in the order in which they
# come, so every process needs a graph to all twins, and sharded weights need every process in every pass
IDLE = Sample(memory=2, chunk_size=2, continuation=Span(2, 2, 2), repetition=Span(2, 2, 2))


@dataclass
class FocusOutput(ModelOutput):
    """What `model(input_ids, labels=...)` returns. All are scalars.

    Attributes:
        loss (`torch.FloatTensor`):
            (1 − λ)·(w_c·`loss_continuation` + w_r·`loss_repetition`) + λ·`loss_distillation`, where λ is `distill_weight`. With
            `loss="draw"`, where weights are odds, the mean over all labels drawn stands in place of the weighted sum.
        loss_continuation, loss_repetition (`torch.FloatTensor`):
            Mean cross-entropy over the labels of each loss; 0 where there are none.
        loss_distillation (`torch.FloatTensor`, *optional*):
            Mean KL(base model reading everything ‖ adapter), summed like the losses. Where memory and window do not fit the
            base model, cross-entropy stands in for it. Only with `distill_weight`.
        num_continuation, num_repetition (`torch.LongTensor`): How many labels each had.
        loss_local_continuation, loss_local_repetition (`torch.FloatTensor`, *optional*):
            Mean cross-entropy of the base model on the same labels, given the same local windows and no candidates. Only with
            `local_loss=True`.
    """

    loss: torch.Tensor | None = None
    loss_continuation: torch.Tensor | None = None
    loss_repetition: torch.Tensor | None = None
    loss_distillation: torch.Tensor | None = None
    num_continuation: torch.Tensor | None = None
    num_repetition: torch.Tensor | None = None
    loss_local_continuation: torch.Tensor | None = None
    loss_local_repetition: torch.Tensor | None = None


def focus_loss(
    reader: Reader,
    settings: Settings,
    config: FocusConfig,
    documents: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    samples: Sequence[Sample | None],
    local_loss: bool = False,
    distractors: Distractors | None = None,
) -> FocusOutput:
    """Continuation, repetition and distillation loss of a batch.

    Args:
        reader, settings: As in `span_logits`.
        config (`FocusConfig`): The weights of the losses.
        documents (`Sequence[Sequence[int]]`): Ids of each document.
        labels (`Sequence[Sequence[int]]`): The label at each place; -100 is ignored.
        samples (`Sequence[Sample | None]`): What was drawn for each document. None: nothing could be.
        local_loss (`bool`): Measure the baseline of `local_logits` too.
        distractors (`Distractors`, *optional*): What stands at the places that a sample's `seats` leave. The base model's own
            reading, for distillation, is without them.

    Returns:
        `FocusOutput`: means over all labels of the batch.
    """
    parts: dict[str, list[torch.Tensor]] = {"continuation": [], "repetition": []}
    distilled: dict[str, list[torch.Tensor]] = {"continuation": [], "repetition": []}
    alone: dict[str, list[torch.Tensor]] = {"continuation": [], "repetition": []}
    idle: list[torch.Tensor] = []
    for ids, targets, sample in zip(documents, labels, samples):
        if sample is None and not is_distributed():
            continue
        if sample is None:
            ids, targets, sample = list(ids[:1]) * IDLE.memory * 3, [IGNORE] * IDLE.memory * 3, IDLE
        spans: list[tuple[str | None, Span]] = [
            (name, span)
            for name, span in (("continuation", sample.continuation), ("repetition", sample.repetition))
            if span is not None
        ]
        if sample is IDLE:
            spans = [(None, span) for _, span in spans]
        if reader.sharded:  # every process makes the same passes, whether its document has room for both spans or not
            both = config.loss == "sum" and config.continuation_weight > 0 and config.repetition_weight > 0
            spans = (spans + [(None, spans[0][1])])[: 2 if both else 1]
        memory = ids[: sample.memory]
        windows = [Window(list(ids[span.start : span.end - 1]), span.labels) for _, span in spans]
        fitting = [w for w in windows if len(memory) + len(w.ids) <= settings.sizes.limit]
        teachers: dict[Window, torch.Tensor] = {}
        if config.distill_weight and (fitting or reader.sharded):
            # sharded: as many passes as everybody makes
            read = [w if w in fitting else Window(w.ids[-1:], 1) for w in windows] if reader.sharded else fitting
            teachers = dict(zip(read, teacher_logits(reader, memory if fitting else memory[:1], read)))
        found = span_logits(reader, settings, memory, sample.chunk_size, windows, sample.seats, distractors)
        for (name, span), window, logits in zip(spans, windows, found):
            wanted_ids = torch.tensor(targets[span.first_label : span.end])
            # which labels count is known on the CPU: asking the device would wait for it
            keep = sent((wanted_ids != IGNORE).nonzero()[:, 0], logits.device)
            target = sent(wanted_ids, logits.device)
            logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            if local_loss:
                baseline = local_logits(reader, settings, window).to(logits.dtype)
            if name is None:
                idle.append(0.0 * logits.sum())
                continue
            cross_entropy = F.cross_entropy(logits[keep], target[keep], reduction="none")
            parts[name].append(cross_entropy)
            if local_loss:
                alone[name].append(F.cross_entropy(baseline[keep], target[keep], reduction="none"))
            if window in teachers:
                wanted = teachers[window].to(logits.dtype)[keep].log_softmax(-1)
                distilled[name].append((wanted.exp() * (wanted - logits[keep].log_softmax(-1))).sum(-1))
            elif config.distill_weight:
                distilled[name].append(cross_entropy)  # too long for the teacher: cross-entropy alone
    output = _combine(parts, distilled, config, reader.device)
    if local_loss:
        output["loss_local_continuation"], output["loss_local_repetition"] = (
            _mean(p, reader.device) for p in alone.values()
        )
    output.loss = sum(idle, start=cast(torch.Tensor, output.loss))
    return output


def _mean(pieces: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    joined = torch.cat(pieces) if pieces else torch.zeros(0, device=device)
    return joined.mean() if len(joined) else joined.sum()


def _combine(
    parts: dict[str, list[torch.Tensor]],
    distilled: dict[str, list[torch.Tensor]],
    config: FocusConfig,
    device: torch.device,
) -> FocusOutput:
    def combined(pieces: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        if config.loss == "draw":  # the weights were the odds
            return _mean(pieces["continuation"] + pieces["repetition"], device)
        weighted = config.continuation_weight * _mean(pieces["continuation"], device)
        return weighted + config.repetition_weight * _mean(pieces["repetition"], device)

    share = config.distill_weight
    means = {name: _mean(pieces, device) for name, pieces in parts.items()}
    counts = {name: torch.tensor(sum(map(len, pieces)), device=device) for name, pieces in parts.items()}
    entropy = combined(parts)
    output = FocusOutput(
        loss=entropy,
        loss_continuation=means["continuation"].detach(),
        loss_repetition=means["repetition"].detach(),
        num_continuation=counts["continuation"],
        num_repetition=counts["repetition"],
    )
    if share:
        divergence = combined(distilled)
        output.loss = (1 - share) * entropy + share * divergence
        # as an item: older transformers forget attributes that were None
        output["loss_distillation"] = divergence.detach()
    return output
