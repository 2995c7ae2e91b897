"""`ReadingStream`: one sequence that is being continued, and the chunks of it that are read in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ..passes.chunking import with_bos
from .stream import Stream


@dataclass
class ReadingStream(Stream):
    """A stream of which some chunks are read in full.

    Attributes:
        before (`list[int]`): The document of the memory that stands before its ids.
        read (`list[int]`): The chunks that are read, ascending, by their number among its own.
        in_full (`list[int]`): Their tokens.
    """

    before: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    in_full: list[int] = field(default_factory=list)

    def chooses(self, turn: bool, local_size: int, limit: int) -> bool:
        length = self.window_length + 1
        if self.fresh:
            return bool(self.rows) or length > local_size
        is_back = len(self.ids) == self.split_at  # the token that brought the choice is gone
        return bool(self.rows) and (turn or is_back) or length >= limit

    def choose(self, read: Sequence[int], lengths: Sequence[int]) -> None:
        """Read other chunks; `lengths` are the tokens of each of its chunks."""
        ends, whole = list(accumulate(lengths)), self.before + self.ids
        self.read = list(read)
        self.in_full = [token for chunk in read for token in whole[ends[chunk] - lengths[chunk] : ends[chunk]]]

    def text(self, bos: int | None) -> list[int]:
        """What the base model reads: the chunks of `read`, in their order in the text, and the local window.

        `bos` stands in front where the beginning of the text is left out, unless what is read begins with it.
        """
        text = self.in_full + self.ids[self.start :]
        left_out = self.rows and self.read[:1] != [0]
        return with_bos(text, bos if left_out else None)
