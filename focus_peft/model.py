"""`FocusModel`: a frozen model with twins, that reads, trains and generates with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import INFERENCE_FIELDS
from .decoding.dispatch import CacheDispatch
from .decoding.forward import check_chunked, is_for_the_base_model, read_all, read_with_cache
from .decoding.generate import generate
from .decoding.loop_cache import LoopCache
from .decoding.options import check_room, refuse_changes
from .decoding.refusals import Refusals
from .decoding.scoring import read_attention
from .frozen.attention_record import exchanges_attention
from .frozen.compat import CACHE, rename
from .frozen.fingerprint import Fingerprint
from .frozen.interception import intercept, release
from .kv.kept_chunks import KeptChunks
from .losses.batch import LabeledBatch, reach_every_twin
from .losses.distractors import Distractors
from .losses.objectives import focus_loss
from .memory.encoding import Encoder
from .memory.memory import Memory
from .memory.ranks import Ranks
from .passes.distributed import shows_progress
from .passes.ids import Ids, check_vocabulary, document_rows, unpad
from .passes.probe import check_reading, check_weights
from .passes.reader import Reader
from .passes.settings import Settings
from .tuner import TwinTuner


class FocusModel(Refusals, TwinTuner):
    """
    A frozen decoder-only language model that reads long inputs in chunks (FocusLLM, arXiv 2408.11745).

    Made by `get_peft_model(model, FocusConfig(...))` or `PeftModel.from_pretrained(model, "user/adapter")`; what is
    below is called on the `PeftModel` that they return.

    Args:
        model (`transformers.PreTrainedModel`): A causal language model. It is not changed but for its projections
            being wrapped.
        peft_config (`FocusConfig`): The adapter's configuration.
        adapter_name (`str`): Its name.

    Raises:
        ValueError: if the model cannot be read in chunks, or the configured sizes do not fit it.

    Example:

    ```python
    import focus_peft
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), "hub/smollm2-135m-instruct-focus")

    inputs = tokenizer(open("README.md").read() + " In short,", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    print(tokenizer.decode(output[0, inputs.input_ids.shape[1] :]))
    ```
    """

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(model, peft_config, adapter_name, **kwargs)
        facts = self.facts
        self._reader = Reader(cast(PreTrainedModel, model), facts.sliding_window, set(facts.layer_types))
        self._reader.install()
        intercept(model, CacheDispatch)
        self._was_checked = False
        self._fingerprint: Fingerprint | None = None

    def unload(self) -> nn.Module:
        """The base model, with its own projections and forward calls and without anything of ours."""
        self._reader.uninstall()
        release(self.model)
        return super().unload()

    def train(self, mode: bool = True) -> FocusModel:
        """Set the mode of the adapter. The frozen model stays in evaluation mode, in which its dropout is off."""
        super().train(False)
        self.training = mode
        return self

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
        for name in ("top_chunks", "read_chunks"):
            if getattr(config, name) is not None:
                self._check_attention_is_seen(name)
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
        twins = [
            p for name, p in self.named_parameters() if ".focus_" in name and f".{self.active_adapters[0]}." in name
        ]
        check_weights(self._reader, twins, self.active_adapters[0])

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the base model; computed once."""
        if self._fingerprint is None:
            self._check_weights()
            self._fingerprint = Fingerprint.of(self.model)
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
        appendix H).

        Args:
            input_ids (`torch.LongTensor` of shape (batch, tokens)), attention_mask, memory: As for `generate`.
            **overrides: As for `generate`: `decoding`, `local_size`, ...

        Returns:
            For each row the share of attention of each of its chunks' candidates, mean over heads and layers:
            (chunks,) in float32. Without chunks it is empty. The rest, up to 1, goes to the local window.

        Raises:
            ValueError: for inputs that cannot work, or a model whose attention cannot be seen.
        """
        self._check_attention_is_seen("chunk_attention")
        return self._look(False, input_ids, attention_mask, memory, overrides)

    def chunk_scores(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        memory: Memory | None = None,
        **overrides: Any,
    ) -> list[torch.Tensor]:
        """How much each chunk has to say to the end of an input: with `read_chunks`, those with the highest scores are
        read in full.

        Args:
            input_ids, attention_mask, memory, **overrides: As for `chunk_attention`.

        Returns:
            For each row the share of attention of each of its chunks' candidates, (chunks,) in float32, as a mean over
            heads, layers and the last tokens of the dynamic prompt, eight at most. Without chunks it is empty.

        Raises:
            ValueError: as `chunk_attention`.
        """
        self._check_attention_is_seen("chunk_scores")
        return self._look(True, input_ids, attention_mask, memory, overrides)

    def _look(
        self,
        score: bool,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        memory: Memory | None,
        overrides: dict[str, Any],
    ) -> list[torch.Tensor]:
        settings = self.settings(**overrides)
        rows = unpad(input_ids, attention_mask)
        check_vocabulary(rows, self.facts.vocab_size)
        self._check_chunks(memory, settings)
        check_room(settings, rows, memory, 0)
        return read_attention(self.reader, settings, rows, memory, score)

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Where PEFT hands over `adapter_names`, which it does not hand to `forward` and `generate`."""
        names = kwargs.get("adapter_names")
        for name in names or ():
            if name not in self.peft_config:
                raise ValueError(f"`adapter_names` has {name!r}, but the adapters are {list(self.peft_config)}.")
            if name not in self.active_adapters:
                raise ValueError(
                    f"`adapter_names` has {name!r}, but the active adapter is {self.active_adapters[0]!r}, and all "
                    "rows of a batch are read with it; call `set_adapter` and give the rows of each adapter in a call "
                    "of their own."
                )
        yield

    @torch.compiler.disable  # bookkeeping is not traced; what is compiled are the base model's own calls
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        memory: Memory | None = None,
        generator: torch.Generator | None = None,
        logits_to_keep: int = 0,
        sample_seeds: torch.Tensor | None = None,
        local_loss: bool = False,
        distractors: Distractors | None = None,
        **kwargs: Any,
    ) -> Any:
        """The training loss, or logits.

        With `labels`: both losses on spans drawn from every row (see `objectives` and `sampling`). Without: logits of
        the base model's shape. A row that fits the local window is the base model's. In a longer one, the logits at
        token t are those that `generate` would compute had it started from the first token and been given the rest, so
        the base model's until the window first spills. With `memory`, every token of `input_ids` sees its own
        candidates. No graph is kept without labels, once candidates are involved.

        Args:
            input_ids (`torch.LongTensor` of shape (batch, tokens)): Documents.
            attention_mask (`torch.Tensor` of shape (batch, tokens), *optional*): 1 at real tokens; padding on either
                side.
            labels (`torch.LongTensor` of shape (batch, tokens), *optional*): Like `input_ids`; -100 is no label.
            memory (`Memory`, *optional*): What stands before `input_ids`, one document for each row. Not with
                `labels`.
            generator (`torch.Generator`, *optional*):
                Draws the spans. Default: torch's global one in training, a fixed seed in evaluation.
            logits_to_keep (`int`):
                Only the last so many logits; 0: all. All tokens before them then count as one input that is handed
                over at once, as `generate` takes it: what does not fit the local window is memory from the start. With
                0, the window grows token by token as in generation, and a token may see up to a chunk more of it.
            use_cache (`bool`, *optional*):
                True: read as `generate` does and return a cache to go on with (`past_key_values`, or `cache`), for
                decoding loops of one's own. Once chunks are involved, the logits are those of the last token.
            sample_seeds (`torch.LongTensor` of shape (batch,), *optional*):
                A seed for each row's spans, which then do not depend on what else is in the batch. Not with
                `generator`.
            local_loss (`bool`): Measure the loss of the local windows alone too (with `labels`).
            distractors (`Distractors`, *optional*): Chunks that may stand among those of the rows (with `labels`).
            **kwargs: Go to the base model where no candidates are involved.

        Returns:
            `FocusOutput` with `labels`, else what the base model returns.

        Raises:
            ValueError: for inputs that cannot be read; the message says why.
        """
        rename(kwargs)
        overrides = {name: kwargs.pop(name) for name in INFERENCE_FIELDS if name in kwargs}
        if not isinstance(logits_to_keep, int) or logits_to_keep < 0:
            raise ValueError(f"`logits_to_keep` must be an integer, 0 or above, got {logits_to_keep!r}.")
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if logits_to_keep:
            given["logits_to_keep"] = logits_to_keep
        if not self.adapters_enabled:
            _refuse_memory(memory)
            return self.model(**given, **({} if labels is None else {"labels": labels}))
        settings = self.settings(**overrides)
        if labels is not None and input_ids is not None:
            _check_training(memory, overrides)
            check_chunked(input_ids, attention_mask, kwargs)
            batch = LabeledBatch(input_ids, labels, attention_mask, generator, sample_seeds)
            documents = batch.documents(settings, self.training, len(distractors or ()))
            output = focus_loss(self.reader, settings, documents, local_loss, distractors)
            return reach_every_twin(output, documents, self.model, self.reader.sharded)
        goes_on = isinstance(kwargs.get(CACHE), LoopCache)
        if goes_on:
            refuse_changes(memory, list(overrides))
        short = memory is None and not goes_on and is_for_the_base_model(settings, input_ids, kwargs)
        plain = isinstance(input_ids, torch.Tensor) and kwargs.get(CACHE) is None
        wants_cache = kwargs.get("use_cache") is True and plain
        prepared = isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4
        if plain and (short or wants_cache) and not prepared:  # `read_all` checks what it reads
            check_vocabulary(unpad(cast(torch.Tensor, input_ids), attention_mask), self.facts.vocab_size)
        if short and not wants_cache:
            return self.model(**given)
        if input_ids is None:
            raise ValueError("`inputs_embeds` cannot be split into chunks; give `input_ids`.")
        if not short:
            check_chunked(input_ids, attention_mask, kwargs)
        self._check_chunks(memory, settings)
        if goes_on or wants_cache:
            return read_with_cache(self.reader, settings, memory, given)
        return read_all(self.reader, settings, input_ids, attention_mask, memory, logits_to_keep)

    def generate(self, inputs: torch.Tensor | None = None, *, memory: Memory | None = None, **kwargs: Any) -> Any:
        """Transformers' `generate`, on inputs of any length.

        What does not fit the local window becomes the memory by itself. As the window grows, its oldest chunk goes
        there too, so generation has no end. Inputs that fit are the base model's.

        Args:
            inputs or input_ids (`torch.LongTensor` of shape (batch, tokens)):
                The input; with `memory`, what is asked about it, rows 0 .. k-1 about its first document and so on.
            memory (`Memory`, *optional*): What `encode` returned.
            attention_mask (`torch.Tensor` of shape (batch, tokens), *optional*):
                1 at real tokens. Padding may be on either side; what is returned is padded on the left.
            **overrides: Fields of [`FocusConfig`] that control the windows and decoding, `chunk_size` left out, for
                this call. A `memory` stays in its own storage, and it is the memory that says whether chunks are
                spread.
            progress (`bool`, *optional*): Show a progress bar while reading. Default: if standard error is a terminal.
            **kwargs: Every option of transformers' `generate`, but `inputs_embeds`, `use_cache=False`,
                `cache_implementation`, `prefill_chunk_size`, `output_attentions` and `output_hidden_states`.

        Returns:
            What transformers' `generate` returns. Its `cache` (`past_key_values` before transformers 5.24) may be
            given back to continue.

        Raises:
            ValueError: for inputs or options that cannot work; before anything is read.
            RuntimeError: in all processes that share the chunks, if they do not read the same.
        """
        overrides = {name: kwargs.pop(name, None) for name in INFERENCE_FIELDS}
        progress = shows_progress(kwargs.pop("progress", None))
        if not self.adapters_enabled:
            _refuse_memory(memory)
            return self.model.generate(inputs, **kwargs)
        settings = self.settings(**overrides)
        self._check_chunks(memory, settings)
        overridden = [name for name, value in overrides.items() if value is not None]
        return generate(self.reader, settings, inputs, memory, progress, overridden, kwargs)


def _refuse_memory(memory: Memory | None) -> None:
    if memory is not None:
        raise ValueError("`memory` was given, but the adapter is disabled, and the base model cannot read it.")


def _check_training(memory: Memory | None, overrides: dict[str, Any]) -> None:
    """Refuse what cannot be with `labels`."""
    if memory is not None:
        raise ValueError("`memory` and `labels` exclude each other: the losses cut their own memory from the rows.")
    if overrides.get("storage") not in (None, "device"):
        raise ValueError(
            f"`storage` is {overrides['storage']!r}, but with `labels` chunks are on the model's device, where "
            "gradients need them; leave it out."
        )
    if overrides.get("read_chunks") is not None:
        raise ValueError(
            f"`read_chunks` is {overrides['read_chunks']}, but with `labels` candidates stand for all chunks, and "
            "learn; leave it out."
        )
    if overrides.get("spread_chunks"):
        raise ValueError(
            "`spread_chunks` is True, but with `labels` every process trains on rows of its own; leave it out."
        )
