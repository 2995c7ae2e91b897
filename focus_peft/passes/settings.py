"""What one call reads with: window sizes that fit the model, its BOS, its position frames, and the way to decode."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import SHARED_FIELDS, FocusConfig
from ..frozen.facts import ModelFacts
from .frames import Frames


@dataclass(frozen=True)
class WindowSizes:
    """The sizes that a model is read with, in tokens.

    Attributes:
        chunk (`int`): c, tokens in a chunk.
        local (`int`): L, tokens in the local window.
        prompt (`int`): P, tokens in the dynamic prompt, without BOS.
        limit (`int`): positions that the model was made for.
    """

    chunk: int
    local: int
    prompt: int
    limit: int

    @classmethod
    def for_model(cls, config: FocusConfig, max_positions: int, shares: int = 4) -> WindowSizes:
        """Fill in the sizes that `config` leaves out, so that everything fits `max_positions`.

        A chunk row holds chunk + BOS + prompt and may grow by another chunk while generating; the local window holds
        the candidates + BOS + window and may grow as much. A quarter of the positions for each leaves room for all of
        it.

        Args:
            config (`FocusConfig`): The sizes that are given.
            max_positions (`int`): Positions that the model was made for.
            shares (`int`): Chunk and window take one of so many shares of them.

        Raises:
            ValueError: if the given sizes do not fit.
        """
        share = max(1, min(2048, max_positions // shares))
        least = config.prompt_size or 1
        # what is left out makes room for what is given
        chunk = config.chunk_size or max(1, min(share, max_positions - 1 - least))
        local = config.local_size or max(share, least)
        prompt = config.prompt_size or max(1, min(512, chunk, local, max_positions - 1 - chunk))
        if prompt > local:
            raise ValueError(
                f"`prompt_size` ({prompt}) is larger than the local window of {local} tokens, whose end it is; choose "
                "a smaller `prompt_size` or a larger `local_size`."
            )
        if chunk + prompt + 1 > max_positions:
            raise ValueError(
                f"`chunk_size` ({chunk}) + `prompt_size` ({prompt}) + 1 exceed the {max_positions} positions of the "
                f"model; choose sizes that add up to {max_positions - 1} at most."
            )
        if local + 2 > max_positions:
            raise ValueError(
                f"`local_size` ({local}) leaves no room for candidates in the {max_positions} positions of the model; "
                f"choose {max_positions - 2} at most."
            )
        return cls(chunk, local, prompt, max_positions)


def frames_of(facts: ModelFacts, chunk: int, nominal: int) -> Frames:
    """Where rows start, for chunks of so many tokens and prompts of so many, BOS included."""
    offset = nominal + chunk if facts.rotary_table else 0  # then the longest row starts above 0
    return Frames(nominal, facts.learned_positions, offset)


@dataclass(frozen=True)
class Settings:
    """What one call reads with: the adapter's configuration on one model.

    Attributes:
        config (`FocusConfig`): The configuration, overrides of the call included.
        facts (`ModelFacts`): Of the base model.
        sizes (`WindowSizes`): c, L and P.
        frames (`Frames`): Where rows start.
        bos (`int`, *optional*): The id that goes before the dynamic prompt and the local window, if any.
    """

    config: FocusConfig
    facts: ModelFacts
    sizes: WindowSizes
    frames: Frames
    bos: int | None

    @classmethod
    def of(cls, config: FocusConfig, facts: ModelFacts) -> Settings:
        """The settings of an adapter on a model.

        Raises:
            ValueError: if the sizes do not fit the model.
        """
        # where positions must be above 0, all of them move up by a chunk and its prompt
        sizes = WindowSizes.for_model(config, facts.max_positions, shares=8 if facts.rotary_table else 4)
        bos = facts.bos if config.add_bos else None
        return cls(config, facts, sizes, frames_of(facts, sizes.chunk, sizes.prompt + (bos is not None)), bos)

    @property
    def exact(self) -> bool:
        """Whether the local window is recomputed for every token, as in the paper."""
        return self.config.decoding == "exact"

    @property
    def shared(self) -> tuple:
        """What must be the same in all processes that share chunks: where each keeps its own, and how many it reads at
        once, may differ."""
        return self.sizes, self.frames, self.bos, *(getattr(self.config, name) for name in SHARED_FIELDS)

    def _window(self, chunks: int, local: int) -> int:
        """Positions that a local window of `local` tokens behind `chunks` candidates takes."""
        # where positions are learned, the local window starts at 0 again
        before = 0 if self.facts.learned_positions else chunks + self.frames.offset
        return before + int(self.bos is not None) + local

    def _in_front(self, chunks: int) -> int:
        """Tokens of chunks that are read in full behind candidates."""
        return min(self.config.read_chunks or 0, chunks) * self.sizes.chunk if self.config.keep_candidates else 0

    def _places(self, chunks: int) -> int:
        """Positions that decoding takes behind `chunks` candidates, with a local window of L tokens."""
        return self._window(chunks, self._in_front(chunks) + self.sizes.local)

    def chunks_of(self, tokens: int) -> int:
        """The chunks that so many tokens make when they are handed over at once."""
        return -(-max(0, tokens - self.sizes.local) // self.sizes.chunk)

    @property
    def prompt_room(self) -> int:
        """Tokens that a dynamic prompt, BOS included, may grow to before it would leave the positions of the model."""
        return self.facts.max_positions - self.sizes.chunk

    def window_limit(self, chunks: int) -> int:
        """The length of a local window behind so many chunks at which its oldest tokens become a chunk: L and a chunk
        more, or less where the positions of the model end.
        """
        room = self.facts.max_positions - self._places(chunks)
        if self.exact and not self.facts.learned_positions:
            room //= 2  # the whole window moves on with its candidates
        return self.sizes.local + max(1, min(self.sizes.chunk, room + 1))

    def check_room(self, chunks: int, new_tokens: int, window: int | None = None) -> None:
        """Raise a ValueError if `new_tokens` more tokens, one by one, behind so many chunks would leave the positions
        of the model.

        Args:
            chunks (`int`): Chunks that there are.
            new_tokens (`int`): Tokens that come.
            window (`int`, *optional*): Tokens of the local window. Defaults to L.
        """
        held, limit, local = chunks, self.facts.max_positions, self.sizes.local
        if self.config.read_chunks is not None and not self.config.keep_candidates:
            self._check_text(min(self.config.read_chunks, chunks), min(new_tokens, self.sizes.chunk))
        window, left = local if window is None else window, new_tokens
        while self._places(chunks) <= limit and window + left >= self.window_limit(chunks):
            left -= self.window_limit(chunks) - window
            window, chunks = local, chunks + 1
        places = self._places(chunks)
        if places > limit:
            in_full = self._in_front(chunks)
            read = f" {in_full} tokens of chunks in full," if in_full else ""
            remedy = "a smaller `read_chunks`" if in_full else f"a larger `chunk_size` than {self.sizes.chunk}"
            raise ValueError(
                f"{held} chunks and {new_tokens} new tokens make {chunks} candidates, which with{read} BOS and "
                f"`local_size` ({local}) need {places} places, but the model has {limit} positions; choose {remedy}, "
                "a smaller `local_size`, or fewer new tokens."
            )

    def _check_text(self, read: int, growth: int) -> None:
        """Raise a ValueError if so many chunks in full, and the local window, would leave the positions of the
        model.
        """
        sizes, limit = self.sizes, self.facts.max_positions
        places = read * sizes.chunk + int(self.bos is not None) + sizes.local + growth
        if places > limit:
            raise ValueError(
                f"`read_chunks` is {self.config.read_chunks}: {read} chunks of `chunk_size` ({sizes.chunk}), BOS, "
                f"`local_size` ({sizes.local}) and {growth} new tokens need {places} places, but the model has "
                f"{limit} positions; choose a smaller `read_chunks`, or fewer new tokens."
            )

    def check_labels(self, chunks: int) -> None:
        """Raise a ValueError if the labels of a span, behind so many chunks and the longest local window that training
        draws, would leave the positions of a model with bounds."""
        labels, local = self.config.label_size, self.config.train_local_size or self.sizes.local
        growth = 0 if self.exact else labels - 1
        row = self.sizes.chunk + int(self.bos is not None) + self.sizes.prompt + growth
        places = max(row, self._window(chunks, local + labels - 1))
        if self.facts.bounded and places > self.facts.max_positions:
            raise ValueError(
                f"No position of the model may pass {self.facts.max_positions}, and a `label_size` of {labels} would "
                f"need {places}: `chunk_size` ({self.sizes.chunk}) + `prompt_size` ({self.sizes.prompt}) or local "
                f"window ({local}), BOS, and all labels but the last. Choose smaller sizes."
            )
