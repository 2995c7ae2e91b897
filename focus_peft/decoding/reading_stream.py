"""`ReadingStream`: one sequence that is being continued, and the shorter text that the base model reads of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

from .stream import Stream


@dataclass
class ReadingStream(Stream):
    """A stream of which some chunks are read in full.

    Attributes:
        before (`list[int]`): The document of the memory that stands before its ids.
        lengths (`list[int]`): Tokens of each of its chunks.
        read (`list[int]`): The chunks that are read, ascending, by their number among its own.
    """

    before: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    def text(self, bos: int | None) -> list[int]:
        """What the base model reads: the chunks of `read`, in their order in the text, and the local window.

        `bos` stands in front where the beginning of the text is left out, unless what is read begins with it.
        """
        ends = list(accumulate(self.lengths))
        whole = self.before + self.ids
        text = [token for chunk in self.read for token in whole[ends[chunk] - self.lengths[chunk] : ends[chunk]]]
        text += self.ids[self.start :]
        left_out = self.lengths and self.read[:1] != [0]
        return [bos, *text] if left_out and bos is not None and text[0] != bos else text
