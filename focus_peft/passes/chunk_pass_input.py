"""The input of the chunk pass: tokens, positions and what they see."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .inputs import ChunkRow, PassInput
from .prompt_region import Placement


def chunk_pass_input(
    rows: Sequence[ChunkRow], starts: Sequence[int], placements: dict[int, Placement], trash: int, width: int = 0
) -> PassInput:
    """The chunk pass over some chunk rows: the new tokens of each row's document behind its chunk.

    Args:
        rows (`Sequence[ChunkRow]`): The rows.
        starts (`Sequence[int]`): Position of each row's first token.
        placements (`dict[int, Placement]`): What is new in each document.
        trash (`int`): A column that nothing reads, for padding.
        width (`int`): New tokens of a row, at least; shorter ones are padded on the left.
    """
    layouts: dict[tuple[int, int], int] = {}  # what is the same in all rows of a document with chunks of one length
    layout = torch.tensor([layouts.setdefault((row.document, row.length), len(layouts)) for row in rows])
    used = [placements[document] for document, _ in layouts]
    width = max(width, *(len(placement.ids) for placement in used))
    read = max(length + len(placement.all_depths) for (_, length), placement in zip(layouts, used))
    columns = torch.full((len(layouts), width), trash)
    visible = torch.zeros(len(layouts), width, read, dtype=torch.bool)
    query_index = torch.zeros(len(layouts), width, dtype=torch.long)
    key_index = torch.zeros(len(layouts), read, dtype=torch.long)
    real = torch.zeros(len(layouts), width, dtype=torch.bool)
    tokens = torch.zeros(len(layouts), width, dtype=torch.long)
    for number, ((_, length), placement) in enumerate(zip(layouts, used)):
        new, old = len(placement.ids), len(placement.old_depth)
        real[number, width - new :] = True
        tokens[number, width - new :] = torch.tensor(placement.ids)
        columns[number, width - new :] = length + old + torch.arange(new)
        visible[number, : width - new, 0] = True  # padding sees something, so that no softmax is empty
        visible[number, width - new :, :length] = True
        visible[number, width - new :, length : length + old + new] = placement.visible
        query_index[number, width - new :] = length + placement.depth
        key_index[number, :length] = torch.arange(length)
        key_index[number, length : length + old + new] = length + placement.all_depths
    positions = (torch.tensor(starts)[:, None] + query_index[layout]).where(real[layout], 0)
    several = layout if len(layouts) > 1 else None
    return PassInput(tokens[layout], positions, columns[layout], visible, query_index, key_index, layout=several)
