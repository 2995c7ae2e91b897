"""`FocusModel`: a frozen model with twins, that reads, trains and generates with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch

from .config import INFERENCE_FIELDS
from .decoding.forward import check_chunked, is_for_the_base_model, read_with_cache, refuse_backward
from .decoding.generate import generate
from .decoding.loop_cache import LoopCache
from .decoding.options import refuse_changes
from .decoding.refusals import Refusals
from .decoding.scoring import read_logits
from .encoding_tuner import EncodingTuner
from .frozen.compat import CACHE, rename
from .losses.batch import LabeledBatch, reach_every_twin
from .losses.distractors import Distractors
from .losses.objectives import focus_loss
from .memory.memory import Memory
from .other_tuners import check_no_virtual_tokens
from .passes.distributed import shows_progress
from .passes.ids import check_batch, check_vocabulary, has_hole
from .passes.settings import Settings


class FocusModel(Refusals, EncodingTuner):
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
        evidence: torch.Tensor | None = None,
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
            evidence (`torch.LongTensor` of shape (batch, pairs, 2), *optional*):
                For the choice loss (`choice_weight`), pairs of places in a row: of a label, and of a token that tells
                it. Counted from 0, padding left out; -100 fills up. What is repeated is known without.
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
        kwargs = {name: value for name, value in kwargs.items() if value is not None}  # PEFT gives None: no choice
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if logits_to_keep:
            given["logits_to_keep"] = logits_to_keep
        if not self.adapters_enabled:
            _refuse_memory(memory, kwargs.get(CACHE))
            return self.model(**given, **({} if labels is None else {"labels": labels}))
        settings = self.settings(**overrides)
        if labels is not None:
            if input_ids is None:
                raise ValueError("`labels` came without `input_ids`, which both losses cut chunks from; give both.")
            if kwargs.get(CACHE) is not None:
                raise ValueError(
                    f"`{CACHE}` and `labels` exclude each other: the losses cut their own memory from the rows."
                )
            _check_training(memory, overrides)
            check_chunked(input_ids, attention_mask, kwargs)
            if settings.config.choice_weight:
                self._check_attention_is_seen("choice_weight")
            batch = LabeledBatch(input_ids, labels, attention_mask, generator, sample_seeds, evidence)
            documents = batch.documents(settings, self.training, len(distractors or ()))
            output = focus_loss(self.reader, settings, documents, local_loss, distractors)
            return reach_every_twin(output, documents, self.model, self.reader.sharded)
        overridden = [name for name, value in overrides.items() if value is not None]
        output = self._logits(settings, memory, given, logits_to_keep, overridden)
        return refuse_backward(output, self.twins) if self.training else output

    def _logits(
        self,
        settings: Settings,
        memory: Memory | None,
        given: dict[str, Any],
        logits_to_keep: int,
        overridden: list[str],
    ) -> Any:
        """What `forward` returns without labels; `given` goes to the base model where it is its business."""
        input_ids, attention_mask, cache = given["input_ids"], given["attention_mask"], given.get(CACHE)
        goes_on = isinstance(cache, LoopCache)
        if goes_on:
            refuse_changes(memory, overridden)
        short = memory is None and not goes_on and is_for_the_base_model(settings, input_ids, given)
        plain = isinstance(input_ids, torch.Tensor) and cache is None
        wants_cache = given.get("use_cache") is True and given.get("return_dict") is not False and plain
        prepared = isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4
        if plain and short and not prepared:  # what reads chunks checks the rest
            ids = cast(torch.Tensor, input_ids)
            mask = check_batch(ids, attention_mask)
            wants_cache = wants_cache and not has_hole(mask)  # of what it reads, a loop could not go on
            check_vocabulary(ids.tolist(), self.facts.vocab_size)
        if short and not wants_cache:
            return self.model(**given)
        if input_ids is None:
            raise ValueError("`input_ids` is missing; `inputs_embeds` alone cannot be split into chunks.")
        if not short:
            check_chunked(input_ids, attention_mask, given)
        self._check_chunks(memory, settings)
        if goes_on or wants_cache:
            return read_with_cache(self.reader, settings, memory, given)
        return read_logits(self.reader, settings, input_ids, attention_mask, memory, logits_to_keep)

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
            rename(kwargs)
            cache = kwargs.get(CACHE)
            if isinstance(cache, LoopCache) and cache.memory is None:
                del kwargs[CACHE]  # all of its tokens stand in the input too, and the base model reads them anew
            _refuse_memory(memory, kwargs.get(CACHE))
            return self.model.generate(inputs, **kwargs)
        check_no_virtual_tokens(self)
        settings = self.settings(**overrides)
        self._check_chunks(memory, settings)
        overridden = [name for name, value in overrides.items() if value is not None]
        return generate(self.reader, settings, inputs, memory, progress, overridden, kwargs)


def _refuse_memory(memory: Memory | None, cache: object) -> None:
    """Refuse what only an enabled adapter can read."""
    for name, given in (("memory", memory), (CACHE, cache if isinstance(cache, LoopCache) else None)):
        if given is not None:
            raise ValueError(
                f"`{name}` was given, but the adapter is disabled, and the base model cannot read "
                "chunks and candidates; leave it out."
            )


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
