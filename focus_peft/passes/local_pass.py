"""The input of the local pass: candidates as a prefix, then the local window."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .chunking import pad_left
from .inputs import PassInput


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

    The candidates stand right before column `front`: for each of the `newest` last tokens a block of max(chunks)
    columns, filled from its right end.

    Args:
        windows (`Sequence[Sequence[int]]`): Each row's whole local window, BOS included.
        cached (`Sequence[int]`): How many of its tokens the store holds already.
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
    # candidate i has the index i, local token j the index chunks + j; in blocks that are not full, columns to the left
    # are nobody's
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
