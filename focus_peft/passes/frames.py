"""Position frames: where chunk rows and local windows start, so that no cached key is ever rotated again.

Rotary attention depends on position differences only, so each chunk row may start at any position, negative ones
included. Row i starts where its candidate falls on position i when the dynamic prompt has its nominal length; a prompt
that is longer or shorter moves all candidates alike, and the local window with them. Learned positions cannot be
shifted: there, chunk rows and the local window all start at 0. Where a model looks rotary angles up in a table, an
offset keeps every position above 0. Where it takes no positions (ALiBi), none of this matters.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Frames:
    """Where rows start.

    Attributes:
        nominal (`int`): Tokens of a dynamic prompt of full length, BOS included.
        learned (`bool`): Whether the model has a table of learned positions.
        offset (`int`): Added to all positions.
    """

    nominal: int
    learned: bool
    offset: int = 0

    def chunk_start(self, index: int, length: int) -> int:
        """Position of the first token of chunk `index`, which has `length` tokens; its prompt follows right after."""
        return 0 if self.learned else self.offset + index + 1 - self.nominal - length

    def local_start(self, chunks: int, prompt_tokens: int) -> int:
        """Position of the first local token, given the number of chunks and the tokens of their prompt, BOS included.

        The candidate of chunk i stands at i + prompt_tokens - nominal, so the window starts right after the last one.
        """
        return 0 if self.learned or chunks == 0 else self.offset + chunks + prompt_tokens - self.nominal
