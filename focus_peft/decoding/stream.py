"""`Stream`: one sequence that is being continued, and where its window and its prompt stand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass
class Stream:
    """One sequence that is being continued. Counts are of tokens.

    Attributes:
        document (`int`): The document that it reads.
        member (`int`): Its number among the document's streams.
        ids (`list[int]`): All of its tokens, but for those in an explicit memory.
        rows (`list[int]`): The chunk rows that it sees, in order: the memory's are numbered first, then the cache's
            own.
        start (`int`): Where in `ids` the local window starts.
        prompt_start (`int`): Where in `ids` the dynamic prompt starts.
        fed (`int`): Prompt tokens, BOS included, that the chunk rows hold as ordinary ones.
        cached (`int`): Tokens of the local window, BOS included, whose keys and values are kept.
        split_at (`int`): Tokens before the first newest one when the window was last split.
        anchors (`list[tuple[int, int]]`): Of each time that its prompt was shortened since the window was last split:
            the tokens up to the first newest one then, and where in `ids` the prompt had started before.
        local_start (`int`): Position of the first local token.
        fresh (`bool`): Nothing has been read of it.
        is_split (`bool`): Its window and prompt have been set up.
    """

    document: int
    member: int
    ids: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    start: int = 0
    prompt_start: int = 0
    fed: int = 0
    cached: int = 0
    split_at: int = 0
    anchors: list[tuple[int, int]] = field(default_factory=list)
    local_start: int = 0
    fresh: bool = True
    is_split: bool = False

    @property
    def window_length(self) -> int:
        return len(self.ids) - self.start

    def chooses(self, turn: bool, local_size: int, limit: int) -> bool:
        """Whether the next token brings a choice of chunks that are read in full, as the first of a `turn`, or where
        the window, of `local_size` at first, comes to its `limit`.
        """
        return False

    def clone(self, member: int) -> Stream:
        """A stream that goes on from here on its own."""
        return replace(self, member=member, ids=list(self.ids), rows=list(self.rows), anchors=list(self.anchors))


def rows_per_document(rows: int, documents: int) -> int:
    """Rows of a batch about each document of a memory. Raises a ValueError if there are not as many of each."""
    if rows % documents:
        raise ValueError(
            f"`input_ids` has {rows} rows, which is no multiple of the {documents} documents in `memory`."
        )
    return rows // documents
