"""The chunk pass: dynamic prompts go behind their chunks, and each chunk leaves its candidates (method: chunk pass,
gather).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..kv.pass_caches import GraphCache, PassCache
from ..kv.store import KeyValueStore, LayerStates, columns_for, sent
from .chunk_pass_input import chunk_pass_input
from .frames import Frames
from .inputs import ChunkRow, PassInput
from .prompt_region import Placement
from .reader import Reader


# Stores, chunk rows in each, and where the first one stands
RowsInStores = Sequence[tuple[KeyValueStore, Sequence[ChunkRow], int]]


@dataclass(frozen=True)
class ChunkBatch:
    """Chunk rows that are read at once, with what is new behind them.

    Attributes:
        store (`KeyValueStore`): Their store.
        place (`slice`): Where they stand in it.
        inputs (`PassInput`): Their new tokens.
    """

    store: KeyValueStore
    place: slice
    inputs: PassInput

    def cache(self, candidates: int = 0) -> PassCache:
        """The cache of a pass over these rows."""
        read = slice(0, self.inputs.visible.shape[-1])
        return PassCache(self.store, self.place, self.inputs.columns, read, candidates=candidates)


def chunk_batches(
    reader: Reader,
    stores: RowsInStores,
    frames: Frames,
    placements: dict[int, Placement],
    batch_size: int | None,
    layer_by_layer: bool = False,
) -> Iterator[ChunkBatch]:
    """The batches of the chunk pass, with room for what is new.

    Args:
        reader (`Reader`): Runs the passes.
        stores (`RowsInStores`): The chunk rows.
        frames (`Frames`): Where rows start.
        placements (`dict[int, Placement]`): What is new in each document.
        batch_size (`int`, *optional*): Chunks read at once.
        layer_by_layer (`bool`): Whether a layer reads all batches before the next layer does; then all rows have as
            many new tokens. Else a batch goes through all layers before the next batch does.
    """
    width = max(len(placement.ids) for placement in placements.values()) if layer_by_layer else 0
    for store, rows, first in stores:
        if not rows:
            continue
        used = [placements[row.document] for row in rows]
        columns = max(row.length + len(placement.all_depths) for row, placement in zip(rows, used)) + 1
        if columns > store.columns:
            longest = max(len(placement.all_depths) for placement in used)
            store.reserve(store.rows, columns_for(columns - longest, longest))
        tokens = max(len(placement.ids) for placement in used)
        batches = list(reader.row_batches(rows, tokens, columns, batch_size))
        places = [slice(first + batch.start, first + batch.stop) for batch in batches]
        store.plan(places, layer_by_layer)
        for batch, place in zip(batches, places):
            starts = [frames.chunk_start(row.index, row.length) for row in rows[batch]]
            inputs = chunk_pass_input(rows[batch], starts, placements, store.columns - 1, width)
            yield ChunkBatch(store, place, inputs)


def read_candidates(reader: Reader, batches: Iterable[ChunkBatch], count: int) -> list[LayerStates]:
    """Run the chunk pass in place: ordinary prompt tokens stay in the stores, candidates are overwritten by what comes
    next.

    Args:
        reader (`Reader`): Runs the passes.
        batches (`Iterable[ChunkBatch]`): As `chunk_batches` gives.
        count (`int`): Candidates of each chunk row; they are its last tokens.

    Returns:
        Per layer, keys and values of shape (chunk rows of all batches, kv_heads, `count`, head_dim).
    """
    gathered: list[list[LayerStates]] = []
    for batch in batches:
        cache = batch.cache(count)
        reader.run(batch.inputs, cache, candidates=count)
        batch.store.close()
        gathered.append([cache.new[layer] for layer in range(len(cache.new))])
    return _join(gathered)


def candidate_places(
    rows: Sequence[Sequence[int]], members: Sequence[int], newest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each stream's candidates stand among those of all chunk rows.

    Args:
        rows (`Sequence[Sequence[int]]`): The chunk rows that each stream sees, in order.
        members (`Sequence[int]`): Each stream's number among those of its document.
        newest (`int`): Candidates that each stream has in a chunk row.

    Returns:
        Rows (streams, 1, block), and numbers among a row's candidates (streams, `newest`, 1). A block has as many
        columns as the longest stream has chunks, and is filled from its right end.
    """
    block = max(map(len, rows))
    row_index = torch.tensor([[0] * (block - len(seen)) + list(seen) for seen in rows])[:, None]
    number = torch.tensor([[member * newest + k for k in range(newest)] for member in members])[:, :, None]
    return row_index, number


def select_candidates(pool: Sequence[LayerStates], row_index: torch.Tensor, number: torch.Tensor) -> list[LayerStates]:
    """Each stream's candidates, from those of all chunk rows.

    Args:
        pool (`Sequence[LayerStates]`): As `read_candidates` returns.
        row_index, number (`torch.Tensor`): As `candidate_places` returns.

    Returns:
        Per layer, keys and values of shape (streams, kv_heads, newest * block, head_dim): a block for each newest
        token.
    """
    # sent to each device once, not in every layer
    places = {device: (sent(row_index, device), sent(number, device)) for device in {k.device for k, _ in pool}}

    def taken(states: torch.Tensor) -> torch.Tensor:
        its_row, its_number = places[states.device]
        return states[its_row, :, its_number].flatten(1, 2).transpose(1, 2)  # of (streams, newest, block, heads, dim)

    return [(taken(keys), taken(values)) for keys, values in pool]


def read_candidates_with_graph(
    reader: Reader,
    store: KeyValueStore,
    rows: Sequence[ChunkRow],
    frames: Frames,
    placement: Placement,
    count: int,
    batch_size: int | None,
) -> list[LayerStates]:
    """Run the chunk pass for training: ordinary prompt tokens without autograd, candidates with it.

    Args and returns as in `read_candidates`, for the chunk rows of one document.
    """
    gathered: list[list[LayerStates]] = []
    split = placement.ordinary
    for batch in reader.row_batches(rows, len(placement.ids), store.columns, batch_size):
        starts = [frames.chunk_start(row.index, row.length) for row in rows[batch]]
        inputs = chunk_pass_input(rows[batch], starts, {0: placement}, trash=store.columns - 1)
        read = inputs.visible.shape[-1]
        if split or reader.sharded:
            # without ordinary tokens, a candidate's column is written, which is hidden and never read
            ordinary = _tokens(inputs, slice(0, max(split, 1)))
            with torch.no_grad():
                reader.run(ordinary, PassCache(store, batch, ordinary.columns, slice(0, read)))
        past = [(keys[batch, :, :read], values[batch, :, :read]) for keys, values in store.layers]
        graph = GraphCache(past)
        reader.run(_behind(_tokens(inputs, slice(split, None))), graph, candidates=count)
        gathered.append([graph.new[layer] for layer in range(len(past))])
    return _join(gathered)


def _join(batches: Sequence[Sequence[LayerStates]]) -> list[LayerStates]:
    """The states of all batches of rows, layer by layer."""
    if len(batches) == 1:
        return list(batches[0])
    return [(torch.cat([s[0] for s in layer]), torch.cat([s[1] for s in layer])) for layer in zip(*batches)]


def _tokens(inputs: PassInput, tokens: slice) -> PassInput:
    """Some of the new tokens of a pass."""
    return replace(
        inputs,
        tokens=inputs.tokens[:, tokens],
        positions=inputs.positions[:, tokens],
        columns=inputs.columns[:, tokens],
        visible=inputs.visible[:, tokens],
        query_index=inputs.query_index[:, tokens],
    )


def _behind(inputs: PassInput) -> PassInput:
    """Keys of new tokens stand behind the columns that are read, instead of in them: `GraphCache` concatenates."""
    rows, tokens = inputs.tokens.shape
    inputs = inputs.by_row()
    visible = inputs.visible.clone()
    visible.scatter_(2, inputs.columns[:, :, None], False)  # each sees itself in the new place
    itself = torch.eye(tokens, dtype=torch.bool)[None].expand(rows, -1, -1)
    return replace(
        inputs,
        visible=torch.cat([visible, itself], dim=2),
        key_index=torch.cat([inputs.key_index, inputs.query_index], dim=1),
    )
