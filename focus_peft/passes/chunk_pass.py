"""The chunk pass: dynamic prompts go behind their chunks, and each chunk leaves its candidates (method: chunk pass,
gather).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

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


def some_rows(stores: RowsInStores, numbers: Sequence[int]) -> RowsInStores:
    """The chunk rows with these numbers, in ascending order, out of those of all stores: a store for each run of
    neighbours.
    """
    runs: list[tuple[KeyValueStore, list[ChunkRow], int]] = []
    begin = 0
    for store, rows, first in stores:
        places = [number - begin for number in numbers if begin <= number < begin + len(rows)]
        for at, place in enumerate(places):
            if not at or place != places[at - 1] + 1:
                runs.append((store, [], first + place))
            runs[-1][1].append(rows[place])
        begin += len(rows)
    return [(store, run, first) for store, run, first in runs]


def candidate_places(
    rows: Sequence[Sequence[int]], members: Sequence[int], newest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each stream's candidates stand among those of all chunk rows: rows (streams, 1, block), and numbers among
    a row's candidates (streams, `newest`, 1). Args as in `select_candidates`.
    """
    block = max(map(len, rows))
    row_index = torch.tensor([[0] * (block - len(seen)) + list(seen) for seen in rows])[:, None]
    number = torch.tensor([[member * newest + k for k in range(newest)] for member in members])[:, :, None]
    return row_index, number


def select_candidates(
    pool: Sequence[LayerStates],
    rows: Sequence[Sequence[int]],
    members: Sequence[int],
    newest: int,
    kept: dict[int, Sequence[int]],
    old: Sequence[LayerStates] | None,
) -> list[LayerStates]:
    """Each stream's candidates, from those of all chunk rows.

    Args:
        pool (`Sequence[LayerStates]`): As `read_candidates` returns.
        rows (`Sequence[Sequence[int]]`): Where in the pool the chunk rows stand that each stream sees, in order.
        members (`Sequence[int]`): Each stream's number among those of its document.
        newest (`int`): Candidates that each stream has in a chunk row.
        kept (`dict[int, Sequence[int]]`): The chunks of which a stream keeps the candidates of `old` instead.
        old (`Sequence[LayerStates]`, *optional*): What this function returned before.

    Returns:
        Per layer, keys and values of shape (streams, kv_heads, newest * chunks, head_dim): for each newest token a
        block of as many columns as the longest stream has chunks, filled from its right end.
    """
    row_index, number = candidate_places(rows, members, newest)
    stays = {} if old is None else {stream: torch.tensor(chunks) for stream, chunks in kept.items() if len(chunks)}
    old = old or pool
    indices: dict[torch.device, Any] = {}  # sent to each device once, not in every layer
    selected: list[LayerStates] = []
    for layer, states in enumerate(pool):
        device = states[0].device
        if device not in indices:
            # from the right end
            at = {stream: sent(chunks - len(rows[stream]), device) for stream, chunks in stays.items()}
            indices[device] = sent(row_index, device), sent(number, device), at
        its_row, its_number, its_stays = indices[device]
        sides = []
        for side, state in enumerate(states):
            taken = state[its_row, :, its_number]  # (streams, newest, block, heads, dim)
            taken = taken.flatten(1, 2).transpose(1, 2)
            for stream, at in its_stays.items():
                taken[stream, :, at] = old[layer][side][stream, :, at]
            sides.append(taken)
        selected.append((sides[0], sides[1]))
    return selected


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
