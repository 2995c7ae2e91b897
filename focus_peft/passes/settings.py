"""What one call reads with: window sizes that fit the model, its BOS, its position frames, and the way to decode."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import FocusConfig
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

        A chunk row holds chunk + BOS + prompt and may grow by another chunk while generating; the local window holds the
        candidates + BOS + window and may grow as much. A quarter of the positions for each leaves room for all of it.

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
                f"`prompt_size` ({prompt}) is larger than the local window of {local} tokens, whose end it is; choose a "
                "smaller `prompt_size` or a larger `local_size`."
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


@dataclass(frozen=True)
class Settings:
    """Everything that a read depends on besides the weights.

    Attributes:
        sizes (`WindowSizes`): c, L and P.
        frames (`Frames`): Where rows start.
        bos (`int`, *optional*): The id that goes before the dynamic prompt and the local window, if any.
        decoding (`str`): "streaming" or "exact".
        refresh_interval (`int`): Candidates are renewed every so many tokens.
        chunk_batch_size (`int`, *optional*): Chunks read at once.
        top_chunks (`int`, *optional*): Only the candidates of so many chunks are renewed.
        storage (`str`): Where chunks are kept.
        storage_dir (`str`, *optional*): Where those on disk are.
        spread_chunks (`bool`): Whether processes share them.
    """

    sizes: WindowSizes
    frames: Frames
    bos: int | None
    decoding: str
    refresh_interval: int
    chunk_batch_size: int | None
    top_chunks: int | None = None
    storage: str = "device"
    storage_dir: str | None = None
    spread_chunks: bool = False

    @classmethod
    def of(cls, config: FocusConfig, facts: ModelFacts) -> Settings:
        """The settings of an adapter on a model.

        Raises:
            ValueError: if the sizes do not fit the model.
        """
        # where positions must be above 0, all of them move up by a chunk and its prompt
        sizes = WindowSizes.for_model(config, facts.max_positions, shares=8 if facts.rotary_table else 4)
        bos = facts.bos if config.add_bos else None
        nominal = sizes.prompt + (bos is not None)
        offset = nominal + sizes.chunk if facts.rotary_table else 0  # then the longest row starts above 0
        frames = Frames(nominal, facts.learned_positions, offset)
        return cls(
            sizes,
            frames,
            bos,
            config.decoding,
            config.refresh_interval,
            config.chunk_batch_size,
            config.top_chunks,
            config.storage,
            config.storage_dir,
            config.spread_chunks,
        )

    @property
    def shared(self) -> tuple:
        """What must be the same in all processes that share chunks: all but where each keeps its own, and how many it reads at once."""
        return self.sizes, self.frames, self.bos, self.decoding, self.refresh_interval, self.top_chunks

    def check_room(self, facts: ModelFacts, chunks: int, new_tokens: int) -> None:
        """Raise a ValueError if `new_tokens` more tokens behind so many chunks would leave the positions of the model."""
        growth = min(new_tokens, self.sizes.chunk)  # then the oldest chunk goes to the memory
        bos = int(self.bos is not None)
        row = self.sizes.chunk + bos + self.sizes.prompt + growth
        # where positions are learned, the local window starts at 0 again
        window = (0 if facts.learned_positions else chunks + self.frames.offset) + bos + self.sizes.local + growth
        if row > facts.max_positions:
            raise ValueError(
                f"`chunk_size` ({self.sizes.chunk}), BOS, `prompt_size` ({self.sizes.prompt}) and {new_tokens} new tokens, a chunk "
                f"at most, need {row} places, but the model has {facts.max_positions} positions; choose smaller sizes, or "
                "fewer new tokens."
            )
        if window > facts.max_positions:
            raise ValueError(
                f"{chunks} candidates, BOS, `local_size` ({self.sizes.local}) and {new_tokens} new tokens, a chunk at most, need "
                f"{window} places, but the model has {facts.max_positions} positions; choose a larger `chunk_size` than "
                f"{self.sizes.chunk}, a smaller `local_size`, or fewer new tokens."
            )

    def check_labels(self, facts: ModelFacts, labels: int, chunks: int, local: int | None = None) -> None:
        """Raise a ValueError if so many labels behind so many chunks, and up to `local` (default: L) local tokens, would leave the
        positions of a model with bounds."""
        bos, local = int(self.bos is not None), local or self.sizes.local
        row = self.sizes.chunk + bos + self.sizes.prompt + (labels - 1 if self.decoding == "streaming" else 0)
        window = (0 if facts.learned_positions else chunks + self.frames.offset) + bos + local + labels - 1
        if facts.bounded and max(row, window) > facts.max_positions:
            raise ValueError(
                f"No position of the model may pass {facts.max_positions}, and a `label_size` of {labels} would need "
                f"{max(row, window)}: `chunk_size` ({self.sizes.chunk}) + `prompt_size` ({self.sizes.prompt}) or "
                f"local window ({local}), BOS, and all labels but the last. Choose smaller sizes."
            )
