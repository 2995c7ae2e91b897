"""Logits of every token of a given text, as decoding token by token would compute them (for evaluation harnesses)."""

from __future__ import annotations

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..memory.memory import Memory
from ..memory.seen_chunks import SeenChunks
from ..passes.ids import check_vocabulary, unpad
from ..passes.reader import Reader
from ..passes.settings import Settings
from .cache_type import cache_type
from .choice import look
from .options import check_room
from .stream import Stream, rows_per_document


def read_logits(
    reader: Reader,
    settings: Settings,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    memory: Memory | None,
    logits_to_keep: int,
) -> CausalLMOutputWithPast:
    """Logits of shape (rows, tokens, vocabulary), or of the last `logits_to_keep` tokens; 0 at padding.

    Args:
        reader, settings: What it is read with.
        input_ids (`torch.LongTensor` of shape (rows, tokens)): The rows, padded on either side.
        attention_mask (`torch.Tensor` of shape (rows, tokens), *optional*): Where the real tokens stand.
        memory (`Memory`, *optional*): What stands before the rows.
        logits_to_keep (`int`): 0: all.

    Raises:
        ValueError: if the rows cannot be read, or rows and documents of `memory` do not fit together.
    """
    rows, width = unpad(input_ids, attention_mask), input_ids.shape[1]
    check_vocabulary(rows, settings.facts.vocab_size)
    check_room(settings, rows, memory, 0)
    kept = min(logits_to_keep, width) or width
    logits: torch.Tensor | None = None
    for row, (ids, document) in enumerate(zip(rows, _documents(rows, memory))):  # each at its own length
        newest = min(kept, len(ids))
        cache = cache_type(settings)(reader, settings, 1, memory, document=document)
        values = cache.read([ids], newest)[0]
        if logits is None:
            logits = values.new_zeros(len(rows), kept, values.shape[-1])
        if logits_to_keep or attention_mask is None:
            logits[row, -newest:] = values
        else:
            logits[row, attention_mask[row].bool().to(logits.device)] = values
    return CausalLMOutputWithPast(logits=logits)


def read_attention(
    reader: Reader, settings: Settings, rows: list[list[int]], memory: Memory | None
) -> list[torch.Tensor]:
    """What the last token of each row looks at: the mean share of its attention that each chunk's candidate has,
    (chunks,) each.

    Args:
        reader, settings, memory: As in `read_logits`.
        rows (`list[list[int]]`): The real tokens of every row.

    Raises:
        ValueError: if rows and documents of `memory` do not fit together.
    """
    found = []
    for ids, document in zip(rows, _documents(rows, memory)):
        chunks = SeenChunks(reader, settings, memory, document)
        stream = Stream(0, 0, ids=list(ids), rows=chunks.of_document(0))
        found += look(reader, settings, chunks, memory, [stream])
    return found


def _documents(rows: list[list[int]], memory: Memory | None) -> list[int | None]:
    """The document of the memory that each row is about."""
    if memory is None:
        return [None] * len(rows)
    group = rows_per_document(len(rows), memory.num_documents)
    return [row // group for row in range(len(rows))]
