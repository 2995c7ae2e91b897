"""`Ranks`: the chunks of one memory are spread over the processes of torch.distributed, and their candidates are
gathered.

Each process holds a share of the chunk rows, and runs the chunk pass on it. All else is small, and every process does
it alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ..kv.store import LayerStates
from ..passes.distributed import is_distributed
from ..passes.inputs import ChunkRow
from ..passes.reader import Reader


# Of the keys and the values of a layer: type, heads, and numbers of a head
Formats = list[tuple[tuple[torch.dtype, int, int], tuple[torch.dtype, int, int]]]


class Ranks:
    """The processes that share the chunks, and which of them this one is.

    The methods that talk to other processes must be called by all of them, in the same order. A single process talks
    to nobody.

    Args:
        rank (`int`): The number of this process.
        size (`int`): How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._formats: Formats | None = None

    @classmethod
    def of(cls, spread: bool, reader: Reader) -> Ranks:
        """All processes of torch.distributed, or (unless chunks are to be spread) this one alone.

        Raises:
            ValueError: if chunks are to be spread, and torch.distributed is not initialized, or weights are divided
                too.
        """
        if not spread:
            return cls()
        if not is_distributed():
            raise ValueError(
                "`spread_chunks` is True, but torch.distributed is not initialized, so there are no processes to "
                "spread chunks over; start with torchrun and call `torch.distributed.init_process_group`, or choose "
                "`spread_chunks=False`."
            )
        if reader.sharded:
            raise ValueError(
                "`spread_chunks` is True, but every process holds a part of each weight, so all must make the same "
                "passes; load the whole model in each process, or choose `spread_chunks=False`."
            )
        return cls(dist.get_rank(), dist.get_world_size())

    def check(self) -> None:
        """Raise a ValueError unless this is still one of the processes that the chunks were spread over."""
        if self.size == 1:
            return
        found = f"rank {dist.get_rank()} of {dist.get_world_size()}" if is_distributed() else "a process on its own"
        if found != f"rank {self.rank} of {self.size}":
            raise ValueError(
                f"The chunks are spread over {self.size} processes (`spread_chunks`), and this was rank {self.rank} "
                f"of them, but now it is {found}; read them again here."
            )

    # Who holds what: every process knows it of all rows

    def share(self, new: Sequence[ChunkRow], held: Iterable[ChunkRow] = ()) -> None:
        """Give every process a run of neighbors of the new rows, as many to each.

        Where they do not divide evenly, those with the fewest tokens in the rows of `held` take one more.
        """
        tokens = [0] * self.size
        for row in held:
            tokens[row.rank] += row.length
        each, left = divmod(len(new), self.size)
        takes_more = sorted(range(self.size), key=tokens.__getitem__)[:left]
        owners = [rank for rank in range(self.size) for _ in range(each + (rank in takes_more))]
        for row, rank in zip(new, owners):
            row.rank = rank

    def holds(self, row: ChunkRow) -> bool:
        return row.rank == self.rank

    def own(self, rows: Iterable[ChunkRow]) -> list[ChunkRow]:
        """Those that this process holds, in order; they stand one after another in its store."""
        return [row for row in rows if self.holds(row)]

    # What goes from process to process

    def check_alike(self, what: str, said: Any) -> None:
        """Raise a RuntimeError in all processes unless all say the same.

        Args:
            what (`str`): What should be alike, for the message.
            said (`Any`): Of this process, with a `repr`.
        """
        if self.size == 1:
            return
        self.check()
        digest = int.from_bytes(hashlib.sha256(repr(said).encode()).digest()[:8], "little", signed=True)
        mine = torch.tensor([digest], device=_transport(torch.device("cpu")))
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(theirs, mine)
        if len({int(digest) for digest in theirs}) > 1:
            raise RuntimeError(
                f"`spread_chunks` is True, but {what} not the same in all processes; give all of them the same inputs "
                "and options, and the same seed (`torch.manual_seed`) where tokens are sampled."
            )

    def gather(
        self, pool: Sequence[LayerStates], rows: Sequence[ChunkRow], count: int, device: torch.device
    ) -> Sequence[LayerStates]:
        """The candidates of all rows, from those that each process has of its own rows.

        Args:
            pool (`Sequence[LayerStates]`): As `read_candidates` returns, of `own(rows)`; empty if these are none.
            rows (`Sequence[ChunkRow]`): The rows of all processes.
            count (`int`): Candidates of each row.
            device (`torch.device`): Where the model computes.

        Returns:
            Per layer, keys and values of shape (rows, kv_heads, `count`, head_dim), the same in every process.
        """
        if self.size == 1:
            return pool
        counts = [sum(row.rank == rank for row in rows) for rank in range(self.size)]
        formats = self._known_formats(pool, counts)
        # a row is a run of bytes, of all layers: any type can be sent, all of it at once
        sides = [side for layer in formats for side in layer]
        widths = [heads * count * dim * dtype.itemsize for dtype, heads, dim in sides]
        mine = torch.zeros(max(counts), sum(widths), dtype=torch.uint8, device=_transport(device))
        if pool:
            states = [side.flatten(1).contiguous().view(torch.uint8).to(mine.device) for pair in pool for side in pair]
            torch.cat(states, dim=1, out=mine[: counts[self.rank]])
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine)
        seen = [0] * self.size
        places = []
        for row in rows:
            places.append(row.rank * len(mine) + seen[row.rank])
            seen[row.rank] += 1
        joined = torch.cat(everyone)[torch.tensor(places, device=mine.device)].to(device)
        gathered = [
            part.clone(memory_format=torch.contiguous_format).view(dtype).view(len(rows), heads, count, dim)
            for part, (dtype, heads, dim) in zip(joined.split(widths, dim=1), sides)
        ]
        return list(zip(gathered[::2], gathered[1::2]))

    def _known_formats(self, pool: Sequence[LayerStates], counts: Sequence[int]) -> Formats:
        """What candidates look like. A process without rows of its own hears it from another, once."""
        if self._formats is None:
            formats = [((k.dtype, k.shape[1], k.shape[3]), (v.dtype, v.shape[1], v.shape[3])) for k, v in pool]
            if 0 in counts:
                message = [formats]
                dist.broadcast_object_list(message, src=counts.index(max(counts)))
                formats = message[0]
            self._formats = formats
        return self._formats


def _transport(device: torch.device) -> torch.device:
    """Where tensors must be for the backend to send them."""
    backend = dist.get_backend()
    if backend == "gloo":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else device
