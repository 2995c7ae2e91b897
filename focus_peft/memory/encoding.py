"""How documents become memories, and which memories a model may read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..frozen.fingerprint import Fingerprint
from ..frozen.weights import execution_device
from ..kv.store import columns_for
from ..layer import TwinLayer
from ..passes.reader import Reader
from ..passes.settings import Settings
from .files import read_description, sentences
from .memory import Memory
from .ranks import Ranks


@dataclass
class Encoder:
    """Reads documents into memories with one model, as the settings of a call say.

    Attributes:
        reader (`Reader`): Runs the passes.
        settings (`Settings`): Of the call.
        fingerprint (`Fingerprint`): Of the model.
    """

    reader: Reader
    settings: Settings
    fingerprint: Fingerprint

    @torch.inference_mode(False)  # what is kept may be written to outside of the caller's
    @torch.no_grad()
    def encode(
        self, documents: list[list[int]], old: Memory | None, given: Mapping[str, Any], progress: bool
    ) -> Memory:
        """Read documents, or what is new in those of `old`.

        Args:
            documents (`list[list[int]]`): Ids; with `old`, what each of its documents goes on with.
            old (`Memory`, *optional*): It stays as it is.
            given (`Mapping[str, Any]`): What the caller chose for this call; all else `old` keeps.
            progress (`bool`): Show a progress bar.

        Raises:
            ValueError: as `FocusModel.encode`.
        """
        settings, config = self.settings, self.settings.config
        storage, storage_dir, spread = config.storage, config.storage_dir, config.spread_chunks
        if old is not None:
            self.check(old)
            if given.get("storage") is None:
                storage, storage_dir = old.storage, given.get("storage_dir") or old.storage_dir  # type: ignore[assignment]
            spread = self._stays_spread(old, given.get("spread_chunks"))
            if len(documents) != old.num_documents:
                raise ValueError(
                    f"`document_ids` has {len(documents)} rows, but `memory` holds {old.num_documents} documents; "
                    "give one row for each."
                )
            documents = [before + new for before, new in zip(old.documents, documents)]
        chunk_size = settings.sizes.chunk
        settings.check_room(-(-max(map(len, documents)) // chunk_size), 0)
        frames = settings.frames if old is None else old.frames
        room = columns_for(0, settings.frames.nominal)
        ranks = Ranks.of(spread, self.reader)
        memory = Memory(documents, chunk_size, frames, self.fingerprint, room, storage, storage_dir, ranks, old)
        memory.read(self.reader, config.chunk_batch_size, progress, old=old)
        return memory

    def _stays_spread(self, old: Memory, wanted: bool | None) -> bool:
        """Whether the chunks of an extended memory are spread over processes."""
        if wanted is None:
            return old.ranks.size > 1
        if old.ranks.size > 1 and not wanted:
            raise ValueError(
                f"`spread_chunks` is False, but the chunks of `memory` are spread over {old.ranks.size} processes, "
                "none of which has them all; leave it out, or encode the documents again."
            )
        return wanted

    @torch.inference_mode(False)
    @torch.no_grad()
    def load(self, directory: str | os.PathLike, tokenizer: PreTrainedTokenizerBase | None) -> Memory:
        """Load what `Memory.save` wrote, onto the model's device or into the storage of the settings.

        Raises:
            FileNotFoundError, ValueError: as `FocusModel.load_memory`.
        """
        config, source = self.settings.config, Path(directory)
        ranks = Ranks.of(config.spread_chunks, self.reader)
        room = columns_for(0, self.settings.frames.nominal)
        storage, storage_dir = config.storage, config.storage_dir
        with sentences(source):
            saved = read_description(source, self.fingerprint, tokenizer)
        self._check_chunk_size(saved.chunk_size)
        with sentences(source):
            saved.check(self.settings, self.reader.formats)
            self.settings.check_room(max(-(-len(ids) // saved.chunk_size) for ids in saved.documents), 0)
            memory = Memory(
                saved.documents, saved.chunk_size, saved.frames, self.fingerprint, room, storage, storage_dir, ranks
            )
            memory.load_states(source, saved, self._states_device)
        self.check(memory)
        return memory

    def check(self, memory: Memory) -> None:
        """Refuse a memory that was not made for this model and adapter."""
        if not isinstance(memory, Memory):
            raise TypeError(f"`memory` must be what `encode` returned, got {type(memory).__name__}.")
        if memory.fingerprint != self.fingerprint:
            try:
                self.fingerprint.check(memory.fingerprint.to_dict())
            except ValueError as error:
                raise ValueError(f"`memory` cannot be used: {error}.") from error
        memory.ranks.check()
        self._check_chunk_size(memory.chunk_size)
        moves = memory.storage in ("cpu", "disk")  # states come to the model as they are read
        if memory.device is not None and memory.device != self._states_device and not moves:
            raise ValueError(
                f"`memory` is on {memory.device}, but the model is on {self._states_device}; move it with "
                f"`memory.to({str(self._states_device)!r})`."
            )

    def _check_chunk_size(self, size: int) -> None:
        if size != self.settings.sizes.chunk:
            raise ValueError(
                f"`memory` was made with chunks of {size} tokens, but the active adapter reads chunks of "
                f"{self.settings.sizes.chunk}; encode the documents again with this adapter."
            )

    @property
    def _states_device(self) -> torch.device:
        """Where the first layer leaves its keys and values."""
        layer = next(module for module in self.reader.model.modules() if isinstance(module, TwinLayer))
        return execution_device(layer.get_base_layer())
