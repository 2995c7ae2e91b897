"""`EncodingTuner`: what a model with twins is besides `forward` and `generate`: its settings, its reader, and what it
has read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterator
from typing import Any, cast

import torch
from accelerate.utils import has_offloaded_params
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import INFERENCE_FIELDS
from .decoding.dispatch import CacheDispatch
from .decoding.options import check_room
from .decoding.scoring import read_attention
from .frozen.attention import check_attention
from .frozen.attention_record import exchanges_attention
from .frozen.fingerprint import Fingerprint
from .frozen.interception import intercept, release
from .frozen.modules import Modules
from .frozen.state import computing_kind
from .kv.kept_chunks import KeptChunks
from .memory.encoding import Encoder
from .memory.memory import Memory
from .memory.ranks import Ranks
from .other_tuners import check_above
from .passes.distributed import shows_progress
from .passes.ids import Ids, check_vocabulary, document_rows, unpad
from .passes.probe import check_reading, check_weights
from .passes.reader import Reader
from .passes.settings import Settings
from .tuner import TwinTuner


# What a model computes in, and the names of its twins
Way = tuple[Hashable, tuple[str, ...]]


class EncodingTuner(TwinTuner):
    """A model whose twins read chunks.

    Args and raises: as of `FocusModel`.
    """

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self._reader = Reader(cast(PreTrainedModel, model), self.facts)
        self._reader.install()
        intercept(model, CacheDispatch)
        self._checked: set[Way] = set()  # the ways of computing in which the model is known to read right
        self._seen_modules: Modules | None = None
        self._fingerprint: Fingerprint | None = None
        self._fingerprinted: Hashable = None  # the weights that it is of

    def unload(self) -> nn.Module:
        """The base model, with its own projections and forward calls and without anything of ours."""
        self._reader.uninstall()
        release(self.model)
        return super().unload()

    def train(self, mode: bool = True) -> EncodingTuner:
        """Set the mode of the adapter. The frozen model stays in evaluation mode, in which its dropout is off."""
        super().train(False)
        self.training = mode
        return self

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._checked = {way for way in self._checked if adapter_name not in way[1]}

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
        if config.read_chunks is not None:
            self._check_attention_is_seen("read_chunks")
        return Settings.of(config, self.facts)

    def _check_attention_is_seen(self, what: str) -> None:
        if not exchanges_attention(cast(PreTrainedModel, self.model)):
            raise ValueError(
                f"`{what}` needs to see what tokens attend to, and the attention of {type(self.model).__name__} shows "
                "it to nobody; it works with models that look their attention function up by name, as most of "
                "transformers' do."
            )

    @property
    def reader(self) -> Reader:
        """Runs the passes. It is checked on a few tokens that the model can be read in chunks: at its first use, and
        again when the model was cast, computes under autocast, or with another attention implementation or adapter.

        Raises:
            ValueError: if it cannot, or if other adapters were put around the twins.
        """
        try:
            self._check()
        except AttributeError as error:
            # of a hook or a kernel; from a property, it would say that there is no `reader`
            raise RuntimeError(f"The model could not be tried on a few tokens: {error}.") from error
        return self._reader

    def _check(self) -> None:
        if self._seen_modules is not self._reader.modules:
            check_above(self.model, self.twins)
            self._seen_modules = self._reader.modules
        if self._way not in self._checked:
            self._check_weights()
            check_attention(cast(PreTrainedModel, self.model))
            check_reading(self._reader, self.settings().frames)
            self._checked.add(self._way)

    @property
    def _way(self) -> Way:
        """What the model computes in, and with which twins."""
        return computing_kind(cast(PreTrainedModel, self.model), self._reader.device), tuple(self.active_adapters)

    def _check_weights(self) -> None:
        paths = [(path, module) for path, module in self.named_modules() if ".focus_" in path]
        active = [module for path, module in paths if path.endswith(f".{self.active_adapters[0]}")]
        twins = [weight for module in active if not has_offloaded_params(module) for weight in module.parameters()]
        check_weights(self._reader, twins, self.active_adapters[0])

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the base model; taken anew when its weights have changed."""
        if self._fingerprint is None or self._reader.frozen_state != self._fingerprinted:
            self._check_weights()
            self._fingerprint = Fingerprint.of(self.model)
            self._fingerprinted = self._reader.frozen_state
        return self._fingerprint

    def _encoder(self, settings: Settings) -> Encoder:
        return Encoder(self.reader, settings, self.fingerprint)

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
            document_ids (`torch.LongTensor` of shape (documents, tokens) or (tokens,), or a list of ids or 1-D
            tensors):
                The documents.
            attention_mask (`torch.Tensor` of shape (documents, tokens), *optional*): 1 at real tokens of a padded
                batch.
            memory (`Memory`, *optional*): Its documents are extended with the new ids, one row for each. It stays as
                it is.
            progress (`bool`, *optional*): Show a progress bar. Default: if standard error is a terminal.
            **overrides: `chunk_batch_size`, `prompt_size`, `storage`, `storage_dir` or `spread_chunks` for this call.
                A memory that is extended keeps its storage, and stays spread, unless something else is given here.

        Returns:
            `Memory`: the encoded chunks.

        Raises:
            ValueError: if a document is empty, has ids outside the vocabulary, or has too many chunks for the model,
                or chunks cannot be spread.
            RuntimeError: in all processes that share the chunks, if they were not given the same documents.
            OSError: if there is no room in `storage_dir`.
        """
        rows = document_rows(document_ids, attention_mask)
        check_vocabulary(rows, self.facts.vocab_size, "document_ids")
        return self._encoder(self.settings(**overrides)).encode(rows, memory, overrides, shows_progress(progress))

    def load_memory(
        self, directory: str | os.PathLike, tokenizer: PreTrainedTokenizerBase | None = None, **overrides: Any
    ) -> Memory:
        """Load a memory that `Memory.save` wrote, onto the model's device or into another storage.

        Args:
            directory (`str` or `os.PathLike`): What was saved.
            tokenizer (*optional*): Must be the one that was saved with it.
            **overrides: `storage`, `storage_dir` or `spread_chunks` for this call, whatever the storage of the memory
                was.

        Raises:
            FileNotFoundError: if `directory` holds none.
            ValueError: if it was made with another model, tokenizer or chunk size, or is damaged.
        """
        return self._encoder(self.settings(**overrides)).load(directory, tokenizer)

    @contextlib.contextmanager
    def keeping_chunks(self, gigabytes: float = 4.0) -> Iterator[KeptChunks]:
        """Within the context, a chunk that was read is not read again where an input has the same tokens at the same
        place.

        For inputs that have much in common and are not known beforehand: prompts that begin with the same documents,
        several adapters on one input. With one document and many questions, `encode` it. Results stay the same; chunks
        are the frozen model's alone, whose weights must not change meanwhile.

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

    def _check_chunks(self, memory: Memory | None, settings: Settings) -> None:
        """Refuse a memory that was not made for this model and adapter, or (without one) to spread chunks where that
        cannot be."""
        if memory is None:
            Ranks.of(settings.config.spread_chunks, self._reader)
        else:
            self._encoder(settings).check(memory)

    def chunk_attention(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        memory: Memory | None = None,
        **overrides: Any,
    ) -> list[torch.Tensor]:
        """What the last token of an input looks at: which chunks have to say something about what comes next (paper
        appendix H). With `read_chunks`, those with the highest shares are read in full; `chunk_scores` is another name
        for it.

        Args:
            input_ids (`torch.LongTensor` of shape (batch, tokens)), attention_mask, memory: As for `generate`.
            **overrides: As for `generate`: `decoding`, `local_size`, ...

        Returns:
            For each row the share of attention of each of its chunks' candidates, mean over heads and layers:
            (chunks,) in float32. Without chunks it is empty. The rest, up to 1, goes to the local window.

        Raises:
            ValueError: for inputs that cannot work, a model whose attention cannot be seen, or a disabled adapter.
        """
        self._check_attention_is_seen("chunk_attention")
        if not self.adapters_enabled:
            raise ValueError(
                "`chunk_attention` shows what candidates are looked at, but the adapter that makes them is disabled; "
                "call it outside of `disable_adapter()`."
            )
        settings = self.settings(**overrides)
        rows = unpad(input_ids, attention_mask)
        check_vocabulary(rows, self.facts.vocab_size)
        self._check_chunks(memory, settings)
        check_room(settings, rows, memory, 0)
        return read_attention(self.reader, settings, rows, memory)

    chunk_scores = chunk_attention
