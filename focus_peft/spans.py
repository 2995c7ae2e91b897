"""The logits that a training loss compares with its labels: the adapter's, the base model's own full reading, and the local window's.

Only candidates go through trainable weights, so ordinary tokens run without autograd, once for all spans of a document; candidates and
whatever sees them run with it. The gradient is exactly that of the naive computation (method: what needs a gradient).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .candidates import read_candidates_with_graph
from .chunking import cut, with_bos
from .distractors import Distractors
from .layout import ChunkRow, PassInput, Placement, PromptRegion, local_pass_input
from .reader import Reader
from .sampling import Seats
from .settings import Settings
from .slab import GraphCache, LayerStates, PassCache, Slab


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


@dataclass(frozen=True, eq=False)
class MemoryReading:
    """A memory whose chunks have been read, with room for the dynamic prompts of some local windows.

    Attributes:
        reader (`Reader`): Runs the passes.
        settings (`Settings`): `decoding` chooses the label scheme: "streaming" gives every label its own candidates; "exact"
            computes one set with the prompt before the first label, and all local tokens see it (the paper's).
        memory (`Sequence[int]`): Ids.
        windows (`Sequence[Window]`): The local windows.
        seats (`Seats`): Where the chunks stand among distractors.
        rows (`Sequence[ChunkRow]`): The chunks, and the distractors after them.
        slab (`Slab`): What was read, a row for each of `rows`.
        newest (`int`): Candidates of each window in each row.
        prompts (`Sequence[list[int]]`): Of each window, its dynamic prompt with BOS and the candidates' tokens.
        placement (`Placement`): Where the prompts go.
        batch_size (`int`, *optional*): Chunks read at once.
    """

    reader: Reader
    settings: Settings
    memory: Sequence[int]
    windows: Sequence[Window]
    seats: Seats
    rows: Sequence[ChunkRow]
    slab: Slab
    newest: int
    prompts: Sequence[list[int]]
    placement: Placement
    batch_size: int | None

    @classmethod
    def of(
        cls,
        reader: Reader,
        settings: Settings,
        memory: Sequence[int],
        chunk_size: int,
        windows: Sequence[Window],
        seats: Seats | None = None,
        distractors: Distractors | None = None,
    ) -> MemoryReading:
        """Read the chunks.

        Args:
            reader, settings, memory, windows: As above.
            chunk_size (`int`): The memory is cut into chunks of this size.
            seats (`Seats`, *optional*): Where the chunks stand among `distractors`. None: there are none.
            distractors (`Distractors`, *optional*): Chunks that take the other places.
        """
        chunks = cut(memory, chunk_size)
        seats = seats or Seats.alone(len(chunks))
        rows = [ChunkRow(0, place, len(chunk)) for place, chunk in zip(seats.own, chunks)]
        starts = [settings.frames.chunk_start(row.index, row.length) for row in rows]
        if distractors is not None:
            rows += [ChunkRow(0, place, distractors.tokens) for place in seats.others]
        newest = 1 if settings.decoding == "exact" else max(window.labels for window in windows)
        prompts = [window.prompt(settings, chunk_size, newest) for window in windows]
        placement = PromptRegion(len(windows)).place(prompts, [0] * len(windows), newest)
        slab = Slab(len(rows), max(row.length for row in rows) + len(placement.ids) + 1)
        batch_size = len(rows) if reader.sharded else settings.chunk_batch_size  # as many passes as everybody makes
        reader.read_chunks(slab, 0, chunks, starts, batch_size)
        if distractors is not None:
            distractors.copy(slab, len(chunks), seats.others)
        return cls(reader, settings, memory, windows, seats, rows, slab, newest, prompts, placement, batch_size)

    def span_logits(self) -> list[torch.Tensor]:
        """For each window the logits (labels, vocabulary) that predict its labels, with a graph to the twins."""
        frames, newest = self.settings.frames, self.newest
        count = len(self.windows) * newest
        candidates = read_candidates_with_graph(
            self.reader, self.slab, self.rows, frames, self.placement, count, self.batch_size
        )
        if self.seats.others:
            candidates = [(keys[self.seats.order], values[self.seats.order]) for keys, values in candidates]
        logits = []
        for number, (window, prompt) in enumerate(zip(self.windows, self.prompts)):
            mine = slice(number * newest, (number + 1) * newest)
            prefix = [
                (_side_by_side(keys[:, :, mine]), _side_by_side(values[:, :, mine])) for keys, values in candidates
            ]
            start = frames.local_start(self.seats.end, len(prompt) - newest + 1)
            logits.append(_local_logits(self.reader, self.settings, window, newest, len(self.rows), start, prefix))
        return logits

    def teacher_logits(self, windows: Sequence[Window], held: int) -> list[torch.Tensor]:
        """The base model's logits (labels, vocabulary) when it reads the first `held` tokens of the memory and a window in full.

        The memory is read once for all windows, its first chunk not at all: nothing stands before it here either.
        """
        longest = held + max(len(window.ids) for window in windows)
        slab, first = Slab(1, longest), self.rows[0]
        start = self.settings.frames.chunk_start(first.index, first.length)
        logits = []
        with torch.no_grad():
            if start + longest <= self.settings.sizes.limit:
                # a token at least is read again, so that all processes make as many passes
                known = min(first.length, held - 1)
                slab.store_first(self.slab, known)
                _read_on(self.reader, slab, self.memory[known:held], start, known, 0)
            else:  # positions from a table may end here
                start = 0
                self.reader.read_chunks(slab, 0, [self.memory[:held]], [start])
            for window in windows:
                logits.append(_read_on(self.reader, slab, window.ids, start, held, window.labels)[0])
        return logits


def _read_on(reader: Reader, slab: Slab, ids: Sequence[int], start: int, held: int, logits: int) -> torch.Tensor:
    """Read ids behind the first `held` columns of a slab's only row, whose first token stands at position `start`."""
    place = torch.arange(held + len(ids))[None]
    new = place[:, held:]
    visible = new[:, :, None] >= place[:, None]
    inputs = PassInput(torch.tensor([list(ids)]), start + new, new, visible, new, place)
    return reader.run(inputs, PassCache(slab, slice(0, 1), new, slice(0, place.shape[1])), logits=logits)


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
