"""Pure bookkeeping of the two passes: which token stands where, and what it sees.

The chunk pass reads, in every chunk row, the dynamic prompts of all streams of a document (beams, returned sequences, questions,
or the two spans of the training loss), so that streams share the chunk's keys and values. The local pass reads one row for each
stream.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from .chunking import pad_left


@dataclass
class ChunkRow:
    """One chunk of the memory: a row of a slab.

    Attributes:
        document (`int`): The document that it belongs to.
        index (`int`): Its number among the chunks of the streams that see it.
        length (`int`): Tokens in it.
        rank (`int`): The process that holds it, where chunks are spread over several.
    """

    document: int
    index: int
    length: int
    rank: int = 0


@dataclass
class PassInput:
    """The tensors of one pass, made on the CPU. Rows that see alike share a layout.

    Attributes:
        tokens (`torch.LongTensor` of shape (rows, tokens)): Left-padded ids.
        positions (`torch.LongTensor` of shape (rows, tokens)): Their positions.
        columns (`torch.LongTensor` of shape (rows, tokens)): Where their keys and values go; padding goes to the last column.
        visible (`torch.BoolTensor` of shape (layouts, tokens, read columns)): What each token sees.
        query_index (`torch.LongTensor` of shape (layouts, tokens)): Each token's place in the order of its row.
        key_index (`torch.LongTensor` of shape (layouts, read columns)): The place of the key in each column.
        prefix (`int`): The first so many columns hold candidates that stand before all else, outside of sliding windows.
        read_start (`int`): The first column that is read.
        layout (`torch.LongTensor` of shape (rows,), *optional*): The layout of each row. None: there is one for all, or one for each.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    columns: torch.Tensor
    visible: torch.Tensor
    query_index: torch.Tensor
    key_index: torch.Tensor
    prefix: int = 0
    read_start: int = 0
    layout: torch.Tensor | None = None

    def by_row(self) -> PassInput:
        """The same with a layout for each row."""
        if self.layout is None:
            rows = len(self.tokens)
            parts = (part.expand(rows, *part.shape[1:]) for part in (self.visible, self.query_index, self.key_index))
        else:
            parts = (part[self.layout] for part in (self.visible, self.query_index, self.key_index))
        visible, query_index, key_index = parts
        return replace(self, visible=visible, query_index=query_index, key_index=key_index, layout=None)

    def within(self, window: int) -> torch.Tensor:
        """`visible`, with each token seeing `window` tokens at most, itself included, and all candidates of the prefix."""
        near = self.query_index[:, :, None] - self.key_index[:, None] < window
        near[..., : self.prefix] = True
        return self.visible & near


@dataclass
class PromptRegion:
    """The columns behind the chunk, the same in every chunk row of a document: the ordinary prompt tokens of its streams.

    Attributes:
        owners (`torch.BoolTensor` of shape (streams, columns)): Which streams each token belongs to.
        depth (`torch.LongTensor` of shape (columns,)): Each token's place in its stream's prompt.
    """

    streams: int
    owners: torch.Tensor = field(init=False)
    depth: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.owners = torch.zeros(self.streams, 0, dtype=torch.bool)
        self.depth = torch.zeros(0, dtype=torch.long)

    @property
    def columns(self) -> int:
        return len(self.depth)

    def truncate(self, columns: int) -> None:
        self.owners, self.depth = self.owners[:, :columns], self.depth[:columns]

    def reorder(self, origin: Sequence[int]) -> None:
        """Stream s goes on from stream `origin[s]`."""
        self.owners = self.owners[list(origin)]

    def place(self, prompts: Sequence[Sequence[int]], fed: Sequence[int], candidates: int) -> Placement:
        """Place what is new: every stream's ordinary tokens from `fed` on, all but the last, then its candidates.

        Args:
            prompts (`Sequence[Sequence[int]]`): Each stream's whole dynamic prompt, BOS included.
            fed (`Sequence[int]`): How many tokens of each the region holds as ordinary ones.
            candidates (`int`): How many of the last tokens of each prompt are candidates. A token that is not the last is
                an ordinary one too, for the candidates after it.
        """
        new = [list(prompt[start:-1]) for prompt, start in zip(prompts, fed)]
        everyone = range(self.streams)
        shared = self.streams > 1 and all(ids == new[0] and fed[0] == start for ids, start in zip(new, fed))
        shared = shared and bool((self.owners == self.owners[:1]).all())
        groups = [(list(everyone), new[0], fed[0])] if shared else [([s], new[s], fed[s]) for s in everyone]
        ids: list[int] = []
        depth: list[int] = []
        owners: list[list[bool]] = []
        for members, tokens, start in groups:
            ids += tokens
            depth += range(start, start + len(tokens))
            owners += [[s in members for s in everyone]] * len(tokens)
        ordinary = len(ids)
        for stream, prompt in enumerate(prompts):
            ids += prompt[-candidates:]
            depth += range(len(prompt) - candidates, len(prompt))
            owners += [[s == stream for s in everyone]] * candidates
        return Placement(
            ids, torch.tensor(depth), torch.tensor(owners, dtype=torch.bool).T, ordinary, self.owners, self.depth
        )

    def keep(self, placement: Placement) -> None:
        """Take the ordinary tokens of a placement over; its candidates are forgotten."""
        self.owners = torch.cat([self.owners, placement.owners[:, : placement.ordinary]], dim=1)
        self.depth = torch.cat([self.depth, placement.depth[: placement.ordinary]])


@dataclass
class Placement:
    """New tokens of a prompt region: ordinary ones first, then the candidates of each stream.

    `owners` has the shape (streams, new tokens), `depth` (new tokens,); `old_*` are those of the region's columns before them.
    """

    ids: list[int]
    depth: torch.Tensor
    owners: torch.Tensor
    ordinary: int
    old_owners: torch.Tensor
    old_depth: torch.Tensor

    @property
    def all_depths(self) -> torch.Tensor:
        return torch.cat([self.old_depth, self.depth])

    def visible(self) -> torch.Tensor:
        """(new tokens, old + new columns): a token sees itself, and the ordinary tokens before it in all of its streams."""
        return self._visible

    @functools.cached_property
    def _visible(self) -> torch.Tensor:  # the same in every batch of chunk rows
        old, new = len(self.old_depth), len(self.depth)
        owners = torch.cat([self.old_owners, self.owners], dim=1)
        # a token of several streams may only see what all of them have
        foreign = self.owners.T.float() @ (~owners).float()  # (new, old + new)
        ordinary = torch.arange(old + new) < old + self.ordinary
        visible = (foreign == 0) & ordinary & (self.all_depths[None] < self.depth[:, None])
        return visible | (torch.arange(old + new)[None] == old + torch.arange(new)[:, None])


def chunk_pass_input(
    rows: Sequence[ChunkRow], starts: Sequence[int], placements: dict[int, Placement], trash: int
) -> PassInput:
    """The chunk pass over some chunk rows: the new tokens of each row's document behind its chunk.

    Args:
        rows (`Sequence[ChunkRow]`): The rows.
        starts (`Sequence[int]`): Position of each row's first token.
        placements (`dict[int, Placement]`): What is new in each document.
        trash (`int`): A column that nothing reads, for padding.
    """
    layouts: dict[tuple[int, int], int] = {}  # what is the same in all rows of a document with chunks of one length
    layout = torch.tensor([layouts.setdefault((row.document, row.length), len(layouts)) for row in rows])
    used = [placements[document] for document, _ in layouts]
    width = max(len(placement.ids) for placement in used)
    read = max(length + len(placement.all_depths) for (_, length), placement in zip(layouts, used))
    columns = torch.full((len(layouts), width), trash)
    visible = torch.zeros(len(layouts), width, read, dtype=torch.bool)
    query_index = torch.zeros(len(layouts), width, dtype=torch.long)
    key_index = torch.zeros(len(layouts), read, dtype=torch.long)
    real = torch.zeros(len(layouts), width, dtype=torch.bool)
    for number, ((_, length), placement) in enumerate(zip(layouts, used)):
        new, old = len(placement.ids), len(placement.old_depth)
        real[number, width - new :] = True
        columns[number, width - new :] = length + old + torch.arange(new)
        visible[number, : width - new, 0] = True  # padding sees something, so that no softmax is empty
        visible[number, width - new :, :length] = True
        visible[number, width - new :, length : length + old + new] = placement.visible()
        query_index[number, width - new :] = length + placement.depth
        key_index[number, :length] = torch.arange(length)
        key_index[number, length : length + old + new] = length + placement.all_depths
    positions = (torch.tensor(starts)[:, None] + query_index[layout]).where(real[layout], 0)
    tokens = pad_left([placement.ids for placement in used])[layout]
    several = layout if len(layouts) > 1 else None
    return PassInput(tokens, positions, columns[layout], visible, query_index, key_index, layout=several)


def local_pass_input(
    windows: Sequence[Sequence[int]],
    cached: Sequence[int],
    starts: Sequence[int],
    chunks: Sequence[int],
    newest: int,
    everyone_sees: bool,
    front: int,
    trash: int,
) -> PassInput:
    """The local pass: [candidates][local window] in every row, of which the tokens from `cached` on are new.

    The candidates stand right before column `front`: for each of the `newest` last tokens a block of max(chunks) columns, filled
    from its right end.

    Args:
        windows (`Sequence[Sequence[int]]`): Each row's whole local window, BOS included.
        cached (`Sequence[int]`): How many of its tokens the slab holds already.
        starts (`Sequence[int]`): Position of each window's first token.
        chunks (`Sequence[int]`): Candidates of each row.
        newest (`int`): The last tokens that each see their own candidates.
        everyone_sees (`bool`): Exact mode: every local token sees the (one set of) candidates.
        front (`int`): Column of the first local token.
        trash (`int`): A column that nothing reads, for padding.
    """
    new = [list(window[done:]) for window, done in zip(windows, cached)]
    width, longest, block = max(map(len, new)), max(map(len, windows)), max(chunks)
    prefix = block * newest
    columns = torch.full((len(windows), width), trash)
    positions = torch.zeros(len(windows), width, dtype=torch.long)
    visible = torch.zeros(len(windows), width, prefix + longest, dtype=torch.bool)
    query_index = torch.zeros(len(windows), width, dtype=torch.long)
    # candidate i has the index i, local token j the index chunks + j; in blocks that are not full, columns to the left are nobody's
    candidate_index = torch.arange(block).repeat(newest) - block
    key_index = torch.cat([candidate_index, torch.arange(longest)])[None] + torch.tensor(chunks)[:, None]
    for row, (window, done) in enumerate(zip(windows, cached)):
        pad = width - len(new[row])
        place = torch.arange(done, len(window))
        columns[row, pad:] = front + place
        positions[row, pad:] = starts[row] + place
        visible[row, :pad, prefix] = True  # padding sees something, so that no softmax is empty
        visible[row, pad:, prefix:] = place[:, None] >= torch.arange(longest)[None]
        query_index[row, pad:] = chunks[row] + place
        if chunks[row]:
            for number in range(newest):
                seen = slice((number + 1) * block - chunks[row], (number + 1) * block)
                seers = slice(pad, None) if everyone_sees else width - newest + number
                visible[row, seers, seen] = True
    return PassInput(
        pad_left(new), positions, columns, visible, query_index, key_index, prefix, read_start=front - prefix
    )
