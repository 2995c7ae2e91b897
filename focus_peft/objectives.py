"""The two losses of the paper, continuation and repetition, and the distillation of the base model's own full reading.

Only candidates go through trainable weights, so ordinary tokens run without autograd, once for both losses; candidates and
whatever sees them run with it. The gradient is exactly that of the naive computation (method: what needs a gradient).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput

from .candidates import read_candidates_with_graph
from .chunking import cut, with_bos
from .config import FocusConfig
from .distractors import Distractors
from .layout import ChunkRow, PassInput, PromptRegion, local_pass_input
from .reader import Reader, is_distributed
from .sampling import IGNORE, Sample, Seats, Span
from .settings import Settings
from .slab import GraphCache, LayerStates, PassCache, Slab


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


def span_logits(
    reader: Reader,
    settings: Settings,
    memory: Sequence[int],
    chunk_size: int,
    windows: Sequence[Window],
    seats: Seats | None = None,
    distractors: Distractors | None = None,
) -> list[torch.Tensor]:
    """The logits that predict the labels of some local windows, all given the same memory, with a graph to the twins.

    Args:
        reader (`Reader`): Runs the passes.
        settings (`Settings`): `decoding` chooses the label scheme: "streaming" gives every label its own candidates; "exact"
            computes one set with the prompt before the first label, and all local tokens see it (the paper's).
        memory (`Sequence[int]`): Ids, cut into chunks of `chunk_size`.
        windows (`Sequence[Window]`): The local windows.
        seats (`Seats`, *optional*): Where the chunks stand among `distractors`. None: there are none.
        distractors (`Distractors`, *optional*): Chunks that take the other places.

    Returns:
        For each window, logits of shape (labels, vocabulary).
    """
    chunks = cut(memory, chunk_size)
    seats = seats or Seats.alone(len(chunks))
    rows = [ChunkRow(0, place, len(chunk)) for place, chunk in zip(seats.own, chunks)]
    starts = [settings.frames.chunk_start(row.index, row.length) for row in rows]
    if distractors is not None:
        rows += [ChunkRow(0, place, distractors.tokens) for place in seats.others]
    exact = settings.decoding == "exact"
    newest = 1 if exact else max(window.labels for window in windows)
    prompts = [window.prompt(settings, chunk_size, newest) for window in windows]
    placement = PromptRegion(len(windows)).place(prompts, [0] * len(windows), newest)
    slab = Slab(len(rows), max(row.length for row in rows) + len(placement.ids) + 1)
    batch_size = len(rows) if reader.sharded else settings.chunk_batch_size  # as many passes as everybody makes
    reader.read_chunks(slab, 0, chunks, starts, batch_size)
    if distractors is not None:
        distractors.copy(slab, len(chunks), seats.others)
    candidates = read_candidates_with_graph(
        reader, slab, rows, settings.frames, placement, len(windows) * newest, batch_size
    )
    if distractors is not None:
        candidates = [(keys[seats.order], values[seats.order]) for keys, values in candidates]

    local_starts = [settings.frames.local_start(seats.end, len(prompt) - newest + 1) for prompt in prompts]
    logits = []
    for number, window in enumerate(windows):
        mine = slice(number * newest, (number + 1) * newest)
        prefix = [(_side_by_side(keys[:, :, mine]), _side_by_side(values[:, :, mine])) for keys, values in candidates]
        logits.append(_local_logits(reader, settings, window, newest, len(rows), local_starts[number], prefix))
    return logits


def _side_by_side(states: torch.Tensor) -> torch.Tensor:
    """(chunks, heads, newest, dim) -> (1, heads, newest * chunks, dim): the candidates of one token side by side."""
    return states.permute(1, 2, 0, 3).flatten(1, 2)[None]


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
        """The dynamic prompt: the last min(P, c, L) tokens before the first label, and the candidates' tokens after."""
        size = min(settings.sizes.prompt, chunk_size, self.before)
        prompt = with_bos(self.ids[self.before - size : self.before], settings.bos)
        following = self.ids[self.before : self.before + newest - 1]
        # a window with fewer labels than another's repeats its last token; nobody looks at what that candidate becomes
        return prompt + following + self.ids[-1:] * (newest - 1 - len(following))


def _local_logits(
    reader: Reader,
    settings: Settings,
    window: Window,
    newest: int,
    chunks: int,
    start: int,
    prefix: Sequence[LayerStates],
) -> torch.Tensor:
    """Logits (labels, vocabulary) of one window behind its candidates."""
    exact = settings.decoding == "exact"
    ids = with_bos(window.ids, settings.bos)
    # streaming: tokens before the first that predicts see no candidates, so no gradient reaches them
    plain = 0 if exact else len(ids) - window.labels
    past = list(prefix)
    if plain or (reader.sharded and not exact):
        read = max(plain, 1)
        plain_input = local_pass_input([ids[:read]], [0], [start], [0], 0, False, 0, read)
        slab = Slab(1, read + 1)
        with torch.no_grad():
            reader.run(plain_input, PassCache(slab, slice(0, 1), plain_input.columns, slice(0, read)))
        past = [
            (torch.cat([a[0], b[0][:, :, :plain]], dim=2), torch.cat([a[1], b[1][:, :, :plain]], dim=2))
            for a, b in zip(prefix, slab.layers)
        ]
    width = newest * chunks
    used = 1 if exact else window.labels
    inputs = local_pass_input([ids], [plain], [start], [chunks], used, exact, 0, 0)
    # candidates that stand in for missing labels are seen by nobody
    hidden = inputs.visible.new_zeros(1, inputs.visible.shape[1], width - used * chunks)
    at = used * chunks
    inputs.visible = torch.cat([inputs.visible[..., :at], hidden, inputs.visible[..., at:]], dim=2)
    nowhere = inputs.key_index.new_zeros(1, hidden.shape[-1])
    inputs.key_index = torch.cat([inputs.key_index[:, :at], nowhere, inputs.key_index[:, at:]], dim=1)
    inputs.prefix = width
    return reader.run(inputs, GraphCache(past), logits=window.labels)[0]


def local_logits(reader: Reader, settings: Settings, window: Window) -> torch.Tensor:
    """The baseline: the base model's logits (labels, vocabulary) when it reads the local window alone, without a gradient."""
    ids = torch.tensor([with_bos(window.ids, settings.bos)], device=reader.device)
    with torch.no_grad():
        return reader.plain_logits(ids, window.labels)[0]


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
            teachers = dict(zip(read, _teacher_logits(reader, settings, memory if fitting else memory[:1], read)))
        others = None if sample.seats is None else distractors
        found = span_logits(reader, settings, memory, sample.chunk_size, windows, sample.seats, others)
        for (name, span), window, logits in zip(spans, windows, found):
            target = torch.tensor(targets[span.first_label : span.end], device=logits.device)
            keep = target != IGNORE
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


def _teacher_logits(
    reader: Reader, settings: Settings, memory: Sequence[int], windows: Sequence[Window]
) -> list[torch.Tensor]:
    """The base model's logits (labels, vocabulary) when it reads memory and window in full; the memory is read once for all."""
    held = len(memory)
    slab = Slab(1, held + max(len(window.ids) for window in windows))
    logits = []
    with torch.no_grad():
        reader.read_chunks(slab, 0, [memory], [0])  # not `frames.offset`: a table has no room for more
        for window in windows:
            place = torch.arange(held + len(window.ids))[None]
            new = place[:, held:]
            visible = new[:, :, None] >= place[:, None]
            inputs = PassInput(torch.tensor([window.ids]), new, new, visible, new, place)
            cache = PassCache(slab, slice(0, 1), new, slice(0, place.shape[1]))
            logits.append(reader.run(inputs, cache, logits=window.labels)[0])
    return logits


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
