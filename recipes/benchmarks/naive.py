"""The training loss as one would write it first: every chunk row in one piece, with the graph kept through all of its
tokens.

The competitor of `benchmark.py training`. Losses and gradients are those of `focus_loss`; each of the two losses reads
the chunks anew, as the released code does when it runs them as two batches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from focus_peft.kv.pass_caches import GraphCache
from focus_peft.kv.store import LayerStates
from focus_peft.losses.sampling import Sample, Span
from focus_peft.losses.span_logits import Window
from focus_peft.passes.chunking import cut, with_bos
from focus_peft.passes.inputs import PassInput
from focus_peft.passes.local_pass import local_pass_input
from focus_peft.passes.prompt_region import PromptRegion

from .setting import heads_of


def naive_loss(tuner: Any, ids: list[int], sample: Sample) -> torch.Tensor:
    """Continuation plus repetition loss of one document.

    Args:
        tuner (`FocusModel`): Its settings choose the label scheme.
        ids (`list[int]`): The document.
        sample (`Sample`): Where its memory is, which is a multiple of its chunk size, and its two local windows.
    """
    chunks = cut(ids[: sample.memory], sample.chunk_size)
    spans = [span for span in (sample.continuation, sample.repetition) if span is not None]
    return sum(
        (_span_loss(tuner, chunks, ids, span) for span in spans), start=torch.zeros((), device=tuner.reader.device)
    )


def _span_loss(tuner: Any, chunks: list[list[int]], ids: list[int], span: Span) -> torch.Tensor:
    settings, reader = tuner.settings(), tuner.reader
    exact = settings.exact
    newest = 1 if exact else span.labels
    window = Window(ids[span.start : span.end - 1], span.labels)
    length = len(chunks[0])
    prompt = window.prompt(settings, length, newest)

    placement = PromptRegion(1).place([prompt], [0], newest)  # [prompt and labels as ordinary tokens][candidates]
    rows = torch.tensor([chunk + placement.ids for chunk in chunks])
    index = torch.cat([torch.arange(length), length + placement.depth])
    visible = (index[:, None] >= index[None]).clone()
    visible[length:, length:] = placement.visible
    visible[:length, length:] = False
    starts = torch.tensor([settings.frames.chunk_start(number, length) for number in range(len(chunks))])
    inputs = PassInput(rows, starts[:, None] + index, rows, visible[None], index[None], index[None])
    cache = GraphCache(_nothing(tuner.model, len(chunks)))
    reader.run(inputs, cache, candidates=newest)
    candidates = [cache.new[layer] for layer in range(len(cache.past))]

    def side_by_side(states: torch.Tensor) -> torch.Tensor:
        """(chunks, kv_heads, tokens, dim) -> (1, kv_heads, newest * chunks, dim)."""
        return states[:, :, -newest:].permute(1, 2, 0, 3).flatten(1, 2)[None]

    prefix = [(side_by_side(keys), side_by_side(values)) for keys, values in candidates]
    start = settings.frames.local_start(len(chunks), len(prompt) - newest + 1)
    local = local_pass_input([with_bos(window.ids, settings.bos)], [0], [start], [len(chunks)], newest, exact, 0, 0)
    logits = reader.run(local, GraphCache(prefix), logits=span.labels)[0]
    return F.cross_entropy(logits, torch.tensor(ids[span.first_label : span.end], device=logits.device))


def _nothing(model: Any, rows: int) -> list[LayerStates]:
    """Keys and values of no tokens."""
    heads, width = heads_of(model.config)
    empty = torch.zeros(rows, heads, 0, width, dtype=model.dtype, device=model.device)
    return [(empty, empty)] * model.config.num_hidden_layers
