"""The logits that a training loss compares with its labels: the adapter's, the base model's own full reading, and the
local window's.

Only candidates go through trainable weights, so ordinary tokens run without autograd, once for all spans of a
document; candidates and whatever sees them run with it. The gradient is exactly that of the naive computation (method:
what needs a gradient).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..frozen.attention_record import LabelRecord
from ..kv.pass_caches import GraphCache, PassCache
from ..kv.store import KeyValueStore, LayerStates, sent
from ..passes.chunk_pass import read_candidates_with_graph
from ..passes.chunking import cut, with_bos
from ..passes.inputs import ChunkRow, PassInput
from ..passes.local_pass import local_pass_input
from ..passes.prompt_region import Placement, PromptRegion
from ..passes.reader import TOKEN_BUDGET, Reader
from ..passes.settings import Settings
from .distractors import Distractors
from .readings import Reading, Window
from .sampling import Seats


class Found(NamedTuple):
    """What a window gives.

    Attributes:
        logits (`torch.Tensor` of shape (labels, vocabulary)): They predict its labels.
        shares (`torch.Tensor` of shape (labels, chunks), *optional*): The share of attention that the token which
            predicts a label pays to each candidate, those of distractors included, as a mean over heads and layers.
            Only with a choice loss.
    """

    logits: torch.Tensor
    shares: torch.Tensor | None


@dataclass
class _Layout:
    """Where everything of one reading stands.

    Attributes:
        chunks (`list[Sequence[int]]`): The chunks of its memory.
        rows (`list[ChunkRow]`): Their rows, and behind them those of distractors.
        newest (`int`): Candidates that each window has in a row.
        prompts (`list[list[int]]`): The dynamic prompt of each window.
        placement (`Placement`): Where the prompts go behind the chunks.
    """

    reading: Reading
    seats: Seats
    chunks: list[Sequence[int]]
    rows: list[ChunkRow]
    newest: int
    prompts: list[list[int]]
    placement: Placement

    @classmethod
    def of(cls, settings: Settings, reading: Reading, distractors: Distractors | None) -> _Layout:
        chunks = cut(reading.memory, reading.chunk_size)
        windows = [labeled.window for labeled in reading.windows]
        seats = reading.seats or Seats.alone(len(chunks))
        rows = [ChunkRow(0, place, len(chunk)) for place, chunk in zip(seats.own, chunks)]
        if distractors is not None:
            rows += [ChunkRow(0, place, distractors.tokens) for place in seats.others]
        newest = 1 if settings.exact else max(window.labels for window in windows)
        prompts = [window.prompt(settings, reading.chunk_size, newest) for window in windows]
        placement = PromptRegion(len(windows)).place(prompts, [0] * len(windows), newest)
        return cls(reading, seats, list(chunks), rows, newest, prompts, placement)

    @property
    def columns(self) -> int:
        """Columns that its rows need."""
        return max(row.length for row in self.rows) + len(self.placement.ids) + 1

    def starts(self, settings: Settings) -> list[int]:
        """Position of the first token of each chunk."""
        own = self.rows[: len(self.chunks)]
        return [settings.frames.chunk_start(row.index, row.length) for row in own]


def span_logits(
    reader: Reader, settings: Settings, readings: Sequence[Reading], distractors: Distractors | None = None
) -> Iterator[list[Found]]:
    """The logits that predict the labels of local windows, with a graph to the twins. Windows of one reading are given
    the same memory; the chunks of several readings are read together, as far as they fit one pass.

    Args:
        reader (`Reader`): Runs the passes.
        settings (`Settings`): `decoding` chooses the label scheme: "streaming" gives every label its own candidates;
            "exact" computes one set with the prompt before the first label, and all local tokens see it (the paper's).
        readings (`Sequence[Reading]`): The memories, and the windows behind each.
        distractors (`Distractors`, *optional*): Chunks that take the places that `seats` of a reading leave.

    Yields:
        For each reading, for each of its windows, what was found.
    """
    layouts = [_Layout.of(settings, reading, distractors) for reading in readings]
    for group in _read_together(layouts, apart=reader.sharded or distractors is not None):
        store = KeyValueStore(sum(len(layout.rows) for layout in group), max(layout.columns for layout in group))
        chunks = [chunk for layout in group for chunk in layout.chunks]
        starts = [start for layout in group for start in layout.starts(settings)]
        # sharded: as many passes as everybody makes
        batch_size = store.rows if reader.sharded else settings.config.chunk_batch_size
        reader.read_chunks(store, 0, chunks, starts, batch_size)
        if distractors is not None:
            distractors.copy(store, len(chunks), group[0].seats.others)
        first = 0
        for layout in group:
            yield _window_logits(reader, settings, layout, store.part(first, len(layout.rows)))
            first += len(layout.rows)


def _read_together(layouts: Sequence[_Layout], apart: bool) -> Iterator[list[_Layout]]:
    """Neighbors whose chunks have one size and fit one pass; with `apart`, each by itself."""
    group: list[_Layout] = []
    for layout in layouts:
        tokens = sum(len(other.reading.memory) for other in [*group, layout])
        alike = bool(group) and group[0].reading.chunk_size == layout.reading.chunk_size
        if group and (apart or not alike or tokens > TOKEN_BUDGET):
            yield group
            group = []
        group.append(layout)
    if group:
        yield group


def _window_logits(reader: Reader, settings: Settings, layout: _Layout, store: KeyValueStore) -> list[Found]:
    """Logits of the windows of one reading, whose chunks have been read."""
    windows = [labeled.window for labeled in layout.reading.windows]
    rows, newest, seats = layout.rows, layout.newest, layout.seats
    batch_size = len(rows) if reader.sharded else settings.config.chunk_batch_size
    candidates = read_candidates_with_graph(
        reader, store, rows, settings.frames, layout.placement, len(windows) * newest, batch_size
    )
    if len(rows) > len(layout.chunks):
        order = torch.tensor(seats.order)
        orders = {device: sent(order, device) for device in {keys.device for keys, _ in candidates}}
        candidates = [(keys[orders[keys.device]], values[orders[keys.device]]) for keys, values in candidates]
    logits = []
    for number, (window, prompt) in enumerate(zip(windows, layout.prompts)):
        mine = slice(number * newest, (number + 1) * newest)
        prefix = [(_side_by_side(keys[:, :, mine]), _side_by_side(values[:, :, mine])) for keys, values in candidates]
        start = settings.frames.local_start(seats.end, len(prompt) - newest + 1)
        logits.append(_local_logits(reader, settings, window, newest, len(rows), start, prefix))
    return logits


def _side_by_side(states: torch.Tensor) -> torch.Tensor:
    """(chunks, heads, newest, dim) -> (1, heads, newest * chunks, dim): the candidates of one token side by side."""
    return states.permute(1, 2, 0, 3).flatten(1, 2)[None]


def _local_logits(
    reader: Reader,
    settings: Settings,
    window: Window,
    newest: int,
    chunks: int,
    start: int,
    prefix: Sequence[LayerStates],
) -> Found:
    """Logits of one window behind its candidates."""
    exact = settings.exact
    ids = with_bos(window.ids, settings.bos)
    # streaming: tokens before the first that predicts see no candidates, so no gradient reaches them
    plain = 0 if exact else len(ids) - window.labels
    past = list(prefix)
    if plain or (reader.sharded and not exact):
        read = max(plain, 1)
        plain_input = local_pass_input([ids[:read]], [0], [start], [0], 0, False, 0, read)
        store = KeyValueStore(1, read + 1)
        with torch.no_grad():
            reader.run(plain_input, PassCache(store, slice(0, 1), plain_input.columns, slice(0, read)))
        past = [
            (torch.cat([a[0], b[0][:, :, :plain]], dim=2), torch.cat([a[1], b[1][:, :, :plain]], dim=2))
            for a, b in zip(prefix, store.layers)
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
    record = LabelRecord(width, window.labels) if settings.config.choice_weight else None
    logits = reader.run(inputs, GraphCache(past), logits=window.labels, record=record)[0]
    if record is None:
        return Found(logits, None)
    blocks = record.mean[0].unflatten(-1, (newest, chunks))
    # each label sees the candidates of its own token, in exact mode all see the same ones
    block = torch.zeros(window.labels, dtype=torch.long) if exact else torch.arange(window.labels)
    return Found(logits, blocks[torch.arange(window.labels), block])


def local_logits(reader: Reader, settings: Settings, window: Window) -> torch.Tensor:
    """The baseline: the base model's logits (labels, vocabulary) when it reads the local window alone, without a
    gradient.
    """
    ids = torch.tensor([with_bos(window.ids, settings.bos)], device=reader.device)
    with torch.no_grad():
        return reader.plain_logits(ids, window.labels)[0]


def teacher_logits(reader: Reader, memory: Sequence[int], windows: Sequence[Window]) -> list[torch.Tensor]:
    """The base model's logits (labels, vocabulary) when it reads memory and window in full; the memory is read once
    for all.
    """
    held = len(memory)
    store = KeyValueStore(1, held + max(len(window.ids) for window in windows))
    logits = []
    with torch.no_grad():
        reader.read_chunks(store, 0, [memory], [0])  # not `frames.offset`: a table has no room for more
        for window in windows:
            place = torch.arange(held + len(window.ids))[None]
            new = place[:, held:]
            visible = new[:, :, None] >= place[:, None]
            inputs = PassInput(torch.tensor([window.ids]), new, new, visible, new, place)
            cache = PassCache(store, slice(0, 1), new, slice(0, place.shape[1]))
            logits.append(reader.run(inputs, cache, logits=window.labels)[0])
    return logits
