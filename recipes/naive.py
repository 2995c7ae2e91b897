"""The training loss as one would write it first: every chunk row in one piece, with the graph kept through all of its tokens.

The competitor of `benchmark.py training`. The losses and gradients are those of `focus_loss` with `decoding="exact"`; each of the two
losses reads the chunks anew, as the released code does when it runs them as two batches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from focus_peft.chunking import cut, with_bos
from focus_peft.sampling import Sample, Span
from focus_peft.settings import Settings


def naive_loss(tuner: Any, ids: list[int], sample: Sample) -> torch.Tensor:
    """Continuation plus repetition loss of one document, each label seeing the one set of candidates before its block.

    Args:
        tuner (`FocusModel`): Its base model is called as it is, but for the last token of each chunk row going through the twins.
        ids (`list[int]`): The document.
        sample (`Sample`): Where its memory and its two local windows are.
    """
    settings = tuner.settings()
    chunks = cut(ids[: sample.memory], sample.chunk_size)
    spans = [span for span in (sample.continuation, sample.repetition) if span is not None]
    return sum((_span_loss(tuner, settings, chunks, ids, span) for span in spans), start=torch.zeros(()))


def _span_loss(tuner: Any, settings: Settings, chunks: list[list[int]], ids: list[int], span: Span) -> torch.Tensor:
    model, frames = tuner.model, settings.frames
    window = ids[span.start : span.end - 1]
    size = min(settings.sizes.prompt, max(map(len, chunks)), span.local)
    prompt = with_bos(window[span.local - size : span.local], settings.bos)
    candidates: list[list[torch.Tensor]] = []
    lengths = sorted({len(chunk) for chunk in chunks}, reverse=True)  # rows of one length need no mask
    for length in lengths:
        batch = [(index, chunk) for index, chunk in enumerate(chunks) if len(chunk) == length]
        rows = torch.tensor([chunk + prompt for _, chunk in batch])
        starts = torch.tensor([frames.chunk_start(index, length) for index, _ in batch])
        cache = DynamicCache()
        with tuner.state.candidates(1):
            model.base_model(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                position_ids=starts[:, None] + torch.arange(rows.shape[1]),
                past_key_values=cache,
            )
        layers: Any = cache.layers
        for layer, states in enumerate(layers):
            if len(candidates) <= layer:
                candidates.append([])
            candidates[layer] += list(torch.stack([states.keys[:, :, -1], states.values[:, :, -1]], 1))
    prefix = DynamicCache()
    for layer, pairs in enumerate(candidates):  # (2, kv_heads, head_dim) each, in chunk order
        keys, values = torch.stack(pairs, 2).unbind(0)  # (kv_heads, chunks, head_dim)
        prefix.update(keys[None], values[None], layer)
    local = torch.tensor([with_bos(window, settings.bos)])
    tokens, count = local.shape[1], len(chunks)
    visible = torch.cat([torch.ones(tokens, count), torch.ones(tokens, tokens).tril()], 1).bool()
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
    start = frames.local_start(count, len(prompt))
    logits = model(
        input_ids=local,
        attention_mask=mask,
        position_ids=start + torch.arange(tokens)[None],
        past_key_values=prefix,
        logits_to_keep=span.labels,
    ).logits[0]
    return F.cross_entropy(logits, torch.tensor(ids[span.first_label : span.end]))
