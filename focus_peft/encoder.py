"""`Encoder`: a model with twins that reads documents into memories, and knows which memories are its own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import INFERENCE_FIELDS
from .frozen.attention_record import exchanges_attention
from .frozen.fingerprint import Fingerprint
from .frozen.weights import execution_device
from .kv.kept_chunks import KeptChunks
from .kv.store import columns_for
from .layer import TwinLayer
from .memory.memory import Memory
from .memory.ranks import Ranks
from .passes.distributed import is_distributed
from .passes.ids import Ids, check_vocabulary, document_rows
from .passes.probe import check_reading
from .passes.reader import Reader
from .passes.settings import Settings
from .tuner import TwinTuner


class Encoder(TwinTuner):
    """What `FocusModel` reads documents with, and keeps of them. `FocusModel` says what it is made with, and what it refuses."""

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(model, peft_config, adapter_name, **kwargs)
        facts = self.facts
        self._reader = Reader(cast(PreTrainedModel, model), self.state, facts.sliding_window, set(facts.layer_types))
        self._was_checked = False
        self._fingerprint: Fingerprint | None = None

    def settings(self, **overrides: Any) -> Settings:
        """The settings that the active adapter reads with; `overrides` replace fields that matter at inference.

        Raises:
            ValueError: if a value cannot work, or there is no adapter.
            TypeError: for a name that is no such field.
        """
        for name in overrides:
            if name not in INFERENCE_FIELDS:
                fields = ", ".join(f"`{field}`" for field in INFERENCE_FIELDS)
                raise TypeError(f"`{name}` cannot be given for one call; only {fields} can.")
        config = self.active_config.with_overrides(**overrides)
        if config.top_chunks is not None:
            self._check_attention_is_seen("top_chunks")
        return Settings.of(config, self.facts)

    def _check_attention_is_seen(self, what: str) -> None:
        if not exchanges_attention(cast(PreTrainedModel, self.model)):
            raise ValueError(
                f"`{what}` needs to see what tokens attend to, and the attention of {type(self.model).__name__} shows it to nobody; "
                "it works with models that look their attention function up by name, as most of transformers' do."
            )

    @property
    def reader(self) -> Reader:
        """Runs the passes. At its first use, it is checked on a few tokens that the model can be read in chunks.

        Raises:
            ValueError: if it cannot.
        """
        if not self._was_checked:
            self._check_weights()
            check_reading(self._reader, self.settings().frames)
            self._was_checked = True
        return self._reader

    def _check_weights(self) -> None:
        """Refuse to read without weights."""
        if self._reader.device.type == "meta":
            raise ValueError(
                f"{type(self.model).__name__} is on the meta device, which holds no weights; load it with `from_pretrained`, "
                "or give it weights with `load_state_dict(..., assign=True)` before it is wrapped."
            )
        adapter = self.active_adapters[0]
        if any(
            f".{adapter}." in name and p.device.type == "meta"
            for name, p in self.named_parameters()
            if ".focus_" in name
        ):
            raise ValueError(
                f"The twins of adapter {adapter!r} are on the meta device, which holds no weights: `low_cpu_mem_usage=True` is "
                "for adapters that are loaded from a file; leave it out in `get_peft_model`."
            )

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the base model; computed once."""
        if self._fingerprint is None:
            self._check_weights()
            self._fingerprint = Fingerprint.of(self.model)
        return self._fingerprint

    def encode(
        self,
        document_ids: Ids,
        attention_mask: torch.Tensor | None = None,
        memory: Memory | None = None,
        progress: bool | None = None,
        **overrides: Any,
    ) -> Memory:
        """Read documents once, to be asked about many times: `generate(question_ids, memory=memory)`.

        Args:
            document_ids (`torch.LongTensor` of shape (documents, tokens) or (tokens,), or a list of ids or 1-D tensors):
                The documents.
            attention_mask (`torch.Tensor` of shape (documents, tokens), *optional*): 1 at real tokens of a padded batch.
            memory (`Memory`, *optional*): Its documents are extended with the new ids, one row for each. It stays as it is.
            progress (`bool`, *optional*): Show a progress bar. Default: if standard error is a terminal.
            **overrides: `chunk_batch_size`, `prompt_size`, `storage`, `storage_dir` or `spread_chunks` for this call. A memory that
                is extended keeps its storage, and stays spread, unless something else is given here.

        Returns:
            `Memory`: the encoded chunks.

        Raises:
            ValueError: if a document is empty, has ids outside the vocabulary, or has too many chunks for the model, or chunks
                cannot be spread.
            RuntimeError: in all processes that share the chunks, if they were not given the same documents.
            OSError: if there is no room in `storage_dir`.
        """
        rows = document_rows(document_ids, attention_mask)
        check_vocabulary(rows, self.facts.vocab_size, "document_ids")
        settings = self.settings(**overrides)
        storage, storage_dir, spread = settings.storage, settings.storage_dir, settings.spread_chunks
        if memory is not None:
            self._check_memory(memory, settings)
            if overrides.get("storage") is None:
                storage, storage_dir = memory.storage, overrides.get("storage_dir") or memory.storage_dir
            if overrides.get("spread_chunks") is None:
                spread = memory.ranks.size > 1
            elif memory.ranks.size > 1 and not spread:
                raise ValueError(
                    f"`spread_chunks` is False, but the chunks of `memory` are spread over {memory.ranks.size} processes, none of which "
                    "has them all; leave it out, or encode the documents again."
                )
            if len(rows) != memory.num_documents:
                raise ValueError(
                    f"`document_ids` has {len(rows)} rows, but `memory` holds {memory.num_documents} documents; give one "
                    "row for each."
                )
            rows = [old + new for old, new in zip(memory.documents, rows)]
        longest = max(map(len, rows))
        settings.check_room(self.facts, -(-longest // settings.sizes.chunk), 0)
        frames = settings.frames if memory is None else memory.frames
        room = columns_for(0, settings.frames.nominal)
        ranks = Ranks.of(spread, self.reader)
        chunk_size = settings.sizes.chunk
        extended = Memory(rows, chunk_size, frames, self.fingerprint, room, storage, storage_dir, ranks, memory)
        extended.read(self.reader, settings.chunk_batch_size, shows_progress(progress), old=memory)
        return extended

    @contextlib.contextmanager
    def keeping_chunks(self, gigabytes: float = 4.0) -> Iterator[KeptChunks]:
        """Within the context, a chunk that was read is not read again where an input has the same tokens at the same place.

        For inputs that have much in common and are not known beforehand: prompts that begin with the same documents, several adapters
        on one input. With one document and many questions, `encode` it. Results stay the same; chunks are the frozen model's alone,
        whose weights must not change meanwhile.

        Args:
            gigabytes (`float`): Room for keys and values of chunks, in GiB, where the model computes. Default: 4.

        Yields:
            `KeptChunks`: counts in `hits` and `misses` what was taken from it and what was read.

        Raises:
            ValueError: if `gigabytes` is no number above 0.
        """
        before, self._reader.pool = self._reader.pool, KeptChunks(gigabytes)
        try:
            yield self._reader.pool
        finally:
            self._reader.pool = before

    def load_memory(
        self, directory: str | os.PathLike, tokenizer: PreTrainedTokenizerBase | None = None, **overrides: Any
    ) -> Memory:
        """Load a memory that `Memory.save` wrote, onto the model's device or into another storage.

        Args:
            directory (`str` or `os.PathLike`): What was saved.
            tokenizer (*optional*): Must be the one that was saved with it.
            **overrides: `storage`, `storage_dir` or `spread_chunks` for this call, whatever the storage of the memory was.

        Raises:
            FileNotFoundError: if `directory` holds none.
            ValueError: if it was made with another model, tokenizer or chunk size, or is damaged.
        """
        settings = self.settings(**overrides)
        room = columns_for(0, settings.frames.nominal)
        ranks = Ranks.of(settings.spread_chunks, self._reader)
        memory = Memory.load(
            directory,
            self.fingerprint,
            self.reader.device,
            room,
            tokenizer,
            settings.storage,
            settings.storage_dir,
            ranks,
        )
        try:
            check_vocabulary(memory.documents, self.facts.vocab_size, "documents")
        except ValueError as error:
            raise ValueError(f"The memory in {str(directory)!r} cannot be used: {error}") from error
        self._check_memory(memory, settings)
        return memory

    def _check_chunks(self, memory: Memory | None, settings: Settings) -> None:
        """Refuse a memory that was not made for this model and adapter, or (without one) to spread chunks where that cannot be."""
        if memory is None:
            Ranks.of(settings.spread_chunks, self._reader)
        else:
            self._check_memory(memory, settings)

    def _check_memory(self, memory: Memory, settings: Settings) -> None:
        """Refuse a memory that was not made for this model and adapter."""
        if not isinstance(memory, Memory):
            raise TypeError(f"`memory` must be what `encode` returned, got {type(memory).__name__}.")
        if memory.fingerprint != self.fingerprint:
            try:
                self.fingerprint.check(memory.fingerprint.to_dict())
            except ValueError as error:
                raise ValueError(f"`memory` cannot be used: {error}.") from error
        memory.ranks.check()
        if memory.chunk_size != settings.sizes.chunk:
            raise ValueError(
                f"`memory` was made with chunks of {memory.chunk_size} tokens, but the active adapter reads chunks of "
                f"{settings.sizes.chunk}; encode the documents again with this adapter."
            )
        moves = memory.storage in ("cpu", "disk")  # states come to the model as they are read
        if memory.device is not None and memory.device != self._states_device and not moves:
            raise ValueError(
                f"`memory` is on {memory.device}, but the model is on {self._states_device}; move it with "
                f"`memory.to({str(self._states_device)!r})`."
            )

    @property
    def _states_device(self) -> torch.device:
        """Where the first layer leaves its keys and values."""
        layer = next(module for module in self.model.modules() if isinstance(module, TwinLayer))
        return execution_device(layer.get_base_layer())


def shows_progress(wanted: bool | None) -> bool:
    """Whether to show a progress bar: as wanted, or on the terminal of the first process."""
    if wanted is not None:
        return wanted
    return sys.stderr.isatty() and not (is_distributed() and torch.distributed.get_rank() > 0)
