"""The two losses of the paper, continuation and repetition (equations 5 to 7), and the distillation of the base
model's own full reading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F

from ..config import IGNORE, FocusConfig
from ..kv.store import sent
from ..passes.reader import Reader
from ..passes.settings import Settings
from .distractors import Distractors
from .documents import Document
from .output import FocusOutput
from .readings import LabeledWindow, Reading, readings_of
from .sampling import Seats
from .span_logits import Window, local_logits, span_logits, teacher_logits


# Losses of single labels, by the name of the loss
Parts = dict[str, list[torch.Tensor]]


def focus_loss(
    reader: Reader,
    settings: Settings,
    documents: Sequence[Document],
    local_loss: bool = False,
    distractors: Distractors | None = None,
) -> FocusOutput:
    """Continuation, repetition and distillation loss of a batch.

    Args:
        reader (`Reader`): Runs the passes.
        settings (`Settings`): As in `span_logits`; its configuration has the weights of the losses.
        documents (`Sequence[Document]`): The batch.
        local_loss (`bool`): Measure the baseline of `local_logits` too.
        distractors (`Distractors`, *optional*): What stands at the places that a sample's `seats` leave. The base
            model's own reading, for distillation, is without them.

    Returns:
        `FocusOutput`: means over all labels of the batch.
    """
    config = settings.config
    entropies: Parts = defaultdict(list)  # equation 5 for each label, given the candidates
    divergences: Parts = defaultdict(list)
    alone: Parts = defaultdict(list)
    choices: list[torch.Tensor] = []
    idle = torch.zeros((), device=reader.device)
    readings = readings_of(documents, config, reader.sharded)
    for reading, found in zip(readings, span_logits(reader, settings, readings, distractors)):
        teachers = _teachers(reader, settings, reading) if config.distill_weight else {}
        for labeled, (logits, shares) in zip(reading.windows, found):
            logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            baseline = local_logits(reader, settings, labeled.window).to(logits.dtype) if local_loss else None
            if labeled.loss is None:
                idle = idle + 0.0 * logits.sum()
                continue
            target = torch.tensor(labeled.labels)
            # which labels count is known on the CPU: asking the device would wait for it
            keep = sent((target != IGNORE).nonzero()[:, 0], logits.device)
            target = sent(target, logits.device)[keep]
            entropy = F.cross_entropy(logits[keep], target, reduction="none")
            entropies[labeled.loss].append(entropy)
            if shares is not None:
                choices.append(_choice_losses(reading, labeled, shares))
            if baseline is not None:
                alone[labeled.loss].append(F.cross_entropy(baseline[keep], target, reduction="none"))
            teacher = teachers.get(labeled.window)
            # what is too long for the teacher has cross-entropy alone
            divergences[labeled.loss].append(entropy if teacher is None else _divergence(teacher[keep], logits[keep]))
    output = _output(entropies, divergences, config, reader.device)
    if local_loss:
        output["loss_local_continuation"] = _mean(alone["continuation"], reader.device)
        output["loss_local_repetition"] = _mean(alone["repetition"], reader.device)
    output.loss = cast(torch.Tensor, output.loss) + idle
    if config.choice_weight:
        chosen = _mean(choices, reader.device)
        output.loss = output.loss + config.choice_weight * chosen
        output["loss_choice"] = chosen.detach()
        output["num_choice"] = torch.tensor(sum(map(len, choices)), device=reader.device)
    return output


def _teachers(reader: Reader, settings: Settings, reading: Reading) -> dict[Window, torch.Tensor]:
    """The base model's own logits for the windows that it can read in full behind the whole memory."""
    windows = [labeled.window for labeled in reading.windows]
    fitting = [w for w in windows if len(reading.memory) + len(w.ids) <= settings.sizes.limit]
    if reader.sharded:  # as many passes as everybody makes
        read = [w if w in fitting else Window(w.ids[-1:], 1) for w in windows]
        return dict(zip(read, teacher_logits(reader, reading.memory if fitting else reading.memory[:1], read)))
    return dict(zip(fitting, teacher_logits(reader, reading.memory, fitting))) if fitting else {}


def _divergence(teacher: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) of each label."""
    wanted = teacher.to(logits.dtype).log_softmax(-1)
    return (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1)


def _choice_losses(reading: Reading, labeled: LabeledWindow, shares: torch.Tensor) -> torch.Tensor:
    """Of each label of which it is known: the cross-entropy of its attention over all candidates, (labels, chunks),
    against the chunks that hold it, all alike.
    """
    seats = reading.seats or Seats.alone(shares.shape[1])
    logs = (shares / shares.sum(-1, keepdim=True)).clamp(min=torch.finfo(shares.dtype).tiny).log()
    columns: dict[int, list[int]] = defaultdict(list)
    for label, chunk in labeled.holders:
        columns[label].append(seats.own[chunk] - seats.begin)
    losses = [-logs[label, held].mean() for label, held in columns.items()]
    return torch.stack(losses) if losses else shares.new_zeros(0)


def _mean(pieces: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    joined = torch.cat(pieces) if pieces else torch.zeros(0, device=device)
    return joined.mean() if len(joined) else joined.sum()


def _total(parts: Parts, config: FocusConfig, device: torch.device) -> torch.Tensor:
    """Equation 7: the weighted sum of both losses; of "draw", whose weights were the odds, the mean over all
    labels.
    """
    if config.loss == "draw":
        return _mean(parts["continuation"] + parts["repetition"], device)
    weighted = config.continuation_weight * _mean(parts["continuation"], device)
    return weighted + config.repetition_weight * _mean(parts["repetition"], device)


def _output(entropies: Parts, divergences: Parts, config: FocusConfig, device: torch.device) -> FocusOutput:
    share = config.distill_weight
    entropy = _total(entropies, config, device)
    output = FocusOutput(
        loss=entropy,
        loss_continuation=_mean(entropies["continuation"], device).detach(),
        loss_repetition=_mean(entropies["repetition"], device).detach(),
        num_continuation=torch.tensor(sum(map(len, entropies["continuation"])), device=device),
        num_repetition=torch.tensor(sum(map(len, entropies["repetition"])), device=device),
    )
    if share:
        divergence = _total(divergences, config, device)
        output.loss = (1 - share) * entropy + share * divergence
        # as an item: older transformers forget attributes that were None
        output["loss_distillation"] = divergence.detach()
    return output
