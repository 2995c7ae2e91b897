"""Keys and values of the local windows, with room for candidates in front of them."""

from __future__ import annotations

from collections.abc import Sequence

from ..kv.pass_caches import PassCache
from ..kv.store import KeyValueStore, round_up
from ..passes.inputs import PassInput
from ..passes.local_pass import local_pass_input


class LocalStates:
    """What has been read of the local windows, a row for each stream.

    Attributes:
        store (`KeyValueStore`): The states.
        front (`int`): Column of the first local token; candidates stand before it.
    """

    def __init__(self) -> None:
        self.store = KeyValueStore()
        self.front = 0

    def open(
        self,
        windows: Sequence[Sequence[int]],
        cached: Sequence[int],
        starts: Sequence[int],
        chunks: Sequence[int],
        newest: int,
        everyone_sees: bool,
    ) -> tuple[PassInput, PassCache]:
        """The input and the cache of a local pass, with room for what is new. Args as in `local_pass_input`."""
        prefix, longest = max(chunks) * newest, max(map(len, windows))
        if prefix > self.front:
            more = round_up(prefix - self.front)
            self.store.reserve(len(windows), 0, front=more)
            self.front += more
        if self.front + longest + 1 > self.store.columns:
            self.store.reserve(len(windows), round_up(self.front + longest + longest // 4 + 1))
        inputs = local_pass_input(
            windows, cached, starts, chunks, newest, everyone_sees, self.front, trash=self.store.columns - 1
        )
        read = slice(inputs.read_start, self.front + longest)
        return inputs, PassCache(self.store, slice(0, len(windows)), inputs.columns, read, prefix_end=self.front)
