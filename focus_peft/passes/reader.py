"""`Reader`: runs passes of the frozen model, unmodified, with masks, positions and caches of ours."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from ..frozen.alibi import Alibi
from ..frozen.attention import taking_masks
from ..frozen.attention_record import AttentionRecord
from ..frozen.compat import CACHE
from ..frozen.grouped_attention import is_grouped, shaped
from ..frozen.modules import Modules
from ..frozen.weights import differentiable_weights, execution_device
from ..kv.kept_chunks import KeptChunks
from ..kv.pass_caches import GraphCache, PassCache
from ..kv.store import KeyValueStore, sent
from ..layer import CandidateState
from .chunking import pad_right
from .inputs import ChunkRow, PassInput


# Tokens, and key/value columns, that one pass of chunk rows may hold where `chunk_batch_size` is not given
TOKEN_BUDGET = 8192
COLUMN_BUDGET = 65536


def _call(function: Callable[[], Any], gradient: torch.Tensor) -> None:
    function()


class Reader:
    """Runs passes of a frozen decoder-only model.

    Args:
        model (`PreTrainedModel`): The base model, twins injected.
        state (`CandidateState`): Tells the twins which positions are candidates.
        sliding_window (`int`, *optional*): Tokens that a sliding-window layer sees.
        layer_types (`set[str]`): "full_attention", "sliding_attention" or both.

    Attributes:
        pool (`KeptChunks`, *optional*): Has the chunks that are not read again. None: all are read.
    """

    def __init__(
        self, model: PreTrainedModel, state: CandidateState, sliding_window: int | None, layer_types: set[str]
    ) -> None:
        self.model = model
        self.state = state
        self.sliding_window = sliding_window
        self.layer_types = layer_types
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
        self.alibi = Alibi.of(model)
        self.groups = is_grouped(model)
        self.pool: KeptChunks | None = None
        self._modules = Modules.of(model)

    @property
    def device(self) -> torch.device:
        """Where ids go: the device of the embeddings."""
        return execution_device(self.model.get_input_embeddings())

    @property
    def modules(self) -> Modules:
        """The modules of the model, which were found once, and are again when some have been exchanged."""
        if not self._modules.are_those_of(self.model):
            self._modules = Modules.of(self.model)
        return self._modules

    @property
    def sharded(self) -> bool:
        """Whether every process holds a part of each weight (ZeRO-3, FSDP).

        Then a pass gathers weights from all processes, and all must make the same passes in the same order.
        """
        weights = self.model.parameters()  # FSDP puts some together before the model runs, and others layer by layer
        return any(hasattr(weight, "ds_id") or type(weight).__name__ == "DTensor" for weight in weights)

    def run(
        self,
        inputs: PassInput,
        cache: Cache,
        candidates: int = 0,
        logits: int = 0,
        record: AttentionRecord | None = None,
    ) -> torch.Tensor:
        """One pass. Keys and values go where `cache` puts them.

        Args:
            inputs (`PassInput`): Tokens, positions and what they see.
            cache (`Cache`): A `PassCache` or a `GraphCache`.
            candidates (`int`): How many of the last tokens of each row go through the twins.
            logits (`int`): How many of the last tokens of each row need logits. 0: none, the LM head does not run.
            record (`AttentionRecord`, *optional*): Notes what the last token of each row looks at.

        Returns:
            `torch.Tensor`: Hidden states (rows, tokens, hidden) or logits (rows, `logits`, vocabulary).
        """
        device = self.device
        if isinstance(cache, PassCache):
            cache.place.send(device)
        arguments: dict[str, Any] = {
            "input_ids": sent(inputs.tokens, device),
            "position_ids": sent(inputs.positions, device),
            CACHE: cache,
            "use_cache": True,
        }
        there = self._sent_layouts(inputs, device)
        masks: Any = self._masks(there)
        biases: Callable[[], AbstractContextManager] = contextlib.nullcontext
        if self.alibi is None:
            arguments["attention_mask"] = masks
        else:  # its attention modules take the mask; the model itself wants one that it can count keys with
            arguments["attention_mask"] = torch.ones(len(inputs.tokens), inputs.visible.shape[-1], device=device)
            keys = there.key_index if there.layout is None else there.key_index[there.layout]
            biases = functools.partial(self.alibi.given, keys, masks)
        if not self.takes_positions:
            del arguments["position_ids"]
        is_whole_mask = self.alibi is None and self.layer_types == {"full_attention"}
        shape = shaped(inputs.visible, is_whole_mask) if self.groups else contextlib.nullcontext()
        with self._masked_pass(candidates, biases, record), self._checkpointing(biases), shape:
            if logits and self.keeps_logits:
                arguments["logits_to_keep"] = logits
            output = self.model(**arguments).logits[:, -logits:] if logits else self.model.base_model(**arguments)[0]
        if isinstance(cache, GraphCache):
            self._gather_for_backward(cache)
        return output

    def _gather_for_backward(self, cache: GraphCache) -> None:
        """FSDP gathers a layer's weights when a gradient comes to its result; ours come to its keys and values,
        too.
        """
        layers = [module for module in self.modules.every if isinstance(module, GradientCheckpointingLayer)]
        for layer, states in cache.new.items():
            gather = getattr(layers[layer], "unshard", None)
            for state in states:
                if gather is not None and state.requires_grad:
                    state.register_hook(functools.partial(_call, gather))

    def read_chunks(
        self,
        store: KeyValueStore,
        first_row: int,
        chunks: Sequence[Sequence[int]],
        starts: Sequence[int],
        batch_size: int | None = None,
        progress: bool = False,
    ) -> None:
        """Read chunks, a batch at a time, into consecutive rows of a store: row r holds chunk r in its first
        columns.
        """

        def read(begin: int, end: int) -> None:
            part = slice(begin, end)
            self._read_chunks(store, first_row + begin, chunks[part], starts[part], batch_size, progress)

        if self.pool is None:
            read(0, len(chunks))
        else:
            self.pool.fill(store, first_row, chunks, starts, read)

    def _read_chunks(
        self,
        store: KeyValueStore,
        first_row: int,
        chunks: Sequence[Sequence[int]],
        starts: Sequence[int],
        batch_size: int | None,
        progress: bool,
    ) -> None:
        longest = max(map(len, chunks))
        batch_size = batch_size or max(1, TOKEN_BUDGET // longest)
        device = self.device
        with tqdm(
            total=sum(map(len, chunks)), unit=" tokens", desc="reading", disable=not progress, leave=False
        ) as bar:
            for begin in range(0, len(chunks), batch_size):
                batch = chunks[begin : begin + batch_size]
                tokens = pad_right(batch)  # padding comes last, so causality alone hides it
                place = torch.arange(tokens.shape[1])[None].expand_as(tokens)
                positions = place + torch.tensor(starts[begin : begin + len(batch)])[:, None]
                rows = slice(first_row + begin, first_row + begin + len(batch))
                cache = PassCache(store, rows, place, slice(0, tokens.shape[1]), chunks=list(map(len, batch)))
                with torch.no_grad(), self._frozen():
                    self.model.base_model(
                        input_ids=sent(tokens, device),
                        # an explicit mask: without one, unusual positions are taken for packed sequences
                        attention_mask=torch.ones_like(tokens, device=device),
                        use_cache=True,
                        **{CACHE: cache},
                        **({"position_ids": sent(positions, device)} if self.takes_positions else {}),
                    )
                store.close()
                bar.update(sum(map(len, batch)))

    def plain_logits(self, ids: torch.Tensor, logits: int) -> torch.Tensor:
        """Logits (rows, `logits`, vocabulary) of the last tokens of unpadded ids (rows, tokens), as the base model
        gives.
        """
        arguments = {"logits_to_keep": logits} if self.keeps_logits else {}
        with self._frozen():
            mask = torch.ones_like(ids)
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False, **arguments).logits[:, -logits:]

    def row_batches(
        self, rows: Sequence[ChunkRow], tokens: int, columns: int, batch_size: int | None
    ) -> Iterator[slice]:
        """Slices of chunk rows that one pass of `tokens` new tokens over `columns` columns each may hold."""
        size = batch_size or max(1, min(TOKEN_BUDGET // max(1, tokens), COLUMN_BUDGET // columns))
        alike = self.alibi is not None and not self.alibi.per_row
        begin = 0
        while begin < len(rows):
            end = min(begin + size, len(rows))
            if alike:  # rows of one document whose chunks have one length; they are neighbours
                kind = rows[begin].document, rows[begin].length
                end = next((n for n in range(begin, end) if (rows[n].document, rows[n].length) != kind), end)
            yield slice(begin, end)
            begin = end

    def _sent_layouts(self, inputs: PassInput, device: torch.device) -> PassInput:
        """What rows see on the device, and the order of their keys where it matters: each layout once, not each
        row.
        """
        there = replace(inputs, visible=sent(inputs.visible, device))
        if inputs.layout is not None:
            there.layout = sent(inputs.layout, device)
        if self.alibi is not None or "sliding_attention" in self.layer_types:
            there.query_index, there.key_index = sent(inputs.query_index, device), sent(inputs.key_index, device)
        return there

    def _masks(self, inputs: PassInput) -> torch.Tensor | dict[str, torch.Tensor]:
        """Additive masks (rows, 1, tokens, columns): one, or one for each type of layer."""
        masks = {}
        rows, dtype = len(inputs.tokens), self.model.dtype
        for kind in self.layer_types:
            visible = inputs.visible
            if kind == "sliding_attention" and self.sliding_window is not None:
                visible = inputs.within(self.sliding_window)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            mask = mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
            masks[kind] = mask.expand(rows, -1, -1, -1) if inputs.layout is None else mask[inputs.layout]
        return masks if len(masks) > 1 else next(iter(masks.values()))

    @contextlib.contextmanager
    def _masked_pass(
        self,
        candidates: int,
        biases: Callable[[], AbstractContextManager],
        record: AttentionRecord | None = None,
    ) -> Iterator[None]:
        """Everything that a pass with a mask of its own needs, in the forward pass and whenever a layer runs again."""
        modules = self.modules
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._frozen(modules))
            stack.enter_context(taking_masks(self.model, self.groups, record, modules.configured))
            stack.enter_context(self.state.candidates(candidates))
            stack.enter_context(biases())
            yield

    @contextlib.contextmanager
    def _frozen(self, modules: Modules | None = None) -> Iterator[None]:
        """Evaluation mode: the base is frozen, its dropout off; nor may its layers checkpoint, which would drop our
        cache.
        """
        modules = modules or self.modules
        training = [module for module in modules.every if module.training]
        for module in training:
            module.training = False
        try:
            with differentiable_weights(self.model, modules.four_bit), _uncompiled():
                yield
        finally:
            for module in training:
                module.training = True

    @contextlib.contextmanager
    def _checkpointing(self, biases: Callable[[], AbstractContextManager]) -> Iterator[None]:
        """Gradient checkpointing of our own (never reentrant), if the model has it on and a graph is being made.

        The model's own drops the cache. Ours runs a layer again with the state that it had in the forward pass.
        """
        layers = []
        if torch.is_grad_enabled():
            every = (module for module in self.modules.every if isinstance(module, GradientCheckpointingLayer))
            layers = [layer for layer in every if layer.gradient_checkpointing]
        patched = [(layer, layer.__dict__.get("forward")) for layer in layers]
        for layer in layers:
            layer.forward = self._checkpointed(layer.forward, biases)
        try:
            yield
        finally:
            for layer, previous in patched:
                del layer.forward
                if previous is not None:  # a hook of somebody else's, such as accelerate's
                    layer.forward = previous

    def _checkpointed(
        self, forward: Callable[..., Any], biases: Callable[[], AbstractContextManager]
    ) -> Callable[..., Any]:
        count = self.state.count

        def again(*args: Any, **kwargs: Any) -> Any:
            with self._masked_pass(count, biases):
                return forward(*args, **kwargs)

        return lambda *args, **kwargs: checkpoint(again, *args, use_reentrant=False, **kwargs)


def _uncompiled() -> contextlib.AbstractContextManager:
    """Within the context, `torch.compile` does nothing: our passes have many shapes, and compiling each takes
    minutes.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    return contextlib.nullcontext() if set_stance is None else set_stance("force_eager")
