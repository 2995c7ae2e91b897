"""Columns behind the chunks, where dynamic prompts are written."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class PromptRegion:
    """The columns behind the chunk, the same in every chunk row of a document: the ordinary prompt tokens of its
    streams.

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
            candidates (`int`): How many of the last tokens of each prompt are candidates. A token that is not the last
                is an ordinary one too, for the candidates after it.
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

    `owners` has the shape (streams, new tokens), `depth` (new tokens,); `old_*` are those of the region's columns
    before them.
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

    @functools.cached_property  # the same in every batch of chunk rows
    def visible(self) -> torch.Tensor:
        """(new tokens, old + new columns): a token sees itself, and the ordinary tokens before it in all of its
        streams.
        """
        old, new = len(self.old_depth), len(self.depth)
        owners = torch.cat([self.old_owners, self.owners], dim=1)
        # a token of several streams may only see what all of them have
        foreign = self.owners.T.float() @ (~owners).float()  # (new, old + new)
        ordinary = torch.arange(old + new) < old + self.ordinary
        visible = (foreign == 0) & ordinary & (self.all_depths[None] < self.depth[:, None])
        return visible | (torch.arange(old + new)[None] == old + torch.arange(new)[:, None])
