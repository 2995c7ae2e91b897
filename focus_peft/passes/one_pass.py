"""One pass for a streaming token: chunk rows and local windows go through the model together.

In each layer a local token needs the candidates of that layer and of no later one, and these are there as soon as the
layer has projected the chunk rows. All tokens stand in one row, those of the local windows first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..frozen.current_pass import Pass
from ..frozen.parts import Part, Parts
from ..kv.pass_caches import PartsCache, PassCache
from .chunk_pass import ChunkBatch
from .inputs import PassInput
from .reader import Reader


# New tokens of a stream, and tokens of all rows, up to which one pass is shorter than two. Where more are read, as
# when a window has been split, weights and launches no longer matter, and the local window has a shape of its own
# (`grouped_attention`).
STREAM_TOKENS = 64
PASS_TOKENS = 4096


def read_in_one_pass(
    reader: Reader,
    batches: Sequence[ChunkBatch],
    count: int,
    local: tuple[PassInput, PassCache],
    places: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Run chunk pass and local pass in one.

    Args:
        reader (`Reader`): Runs the pass.
        batches (`Sequence[ChunkBatch]`): All chunk rows, with as many new tokens each. Attention reads them batch by
            batch.
        count (`int`): Candidates of each chunk row.
        local (`tuple[PassInput, PassCache]`): The local windows.
        places (`tuple[torch.LongTensor, torch.LongTensor]`): As `candidate_places` gives.

    Returns:
        `torch.Tensor`: Logits (streams, new tokens of the longest window, vocabulary).
    """
    inputs, local_cache = local
    width = batches[0].inputs.tokens.shape[1]
    parts, begin = [Part(0, len(inputs.tokens), inputs.tokens.shape[1], reader.masks(inputs))], inputs.tokens.numel()
    chunks = Part(begin, sum(len(batch.inputs.tokens) for batch in batches), width)
    for batch in batches:
        parts.append(Part(begin, len(batch.inputs.tokens), width, reader.masks(batch.inputs)))
        begin += batch.inputs.tokens.numel()
    in_parts = Parts(parts, chunks, sorted(reader.layer_types))
    row_index, number = places
    candidates = (chunks.begin + row_index * width + width - count + number).flatten(1)
    cache = PartsCache(in_parts, local_cache, [batch.cache() for batch in batches], candidates)
    cache.send(reader.device)
    every = [inputs, *(batch.inputs for batch in batches)]
    logits = reader.call(
        torch.cat([each.tokens.flatten() for each in every])[None],
        torch.cat([each.positions.flatten() for each in every])[None],
        in_parts.placeholders(reader.device),
        cache,
        Pass(count, reader.masked, reader.groups, parts=in_parts),
        torch.arange(chunks.begin, device=reader.device),
    )
    for batch in batches:
        batch.store.close()
    return logits.unflatten(1, inputs.tokens.shape)[0]
