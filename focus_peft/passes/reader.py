"""`Reader`: runs passes of the frozen model, unmodified, with masks, positions and caches of ours."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ..frozen.alibi import Alibi
from ..frozen.attention import install_attention, masked_implementation, uninstall_attention
from ..frozen.attention_record import AttentionRecord, exchanges_attention
from ..frozen.compat import CACHE
from ..frozen.current_pass import Pass
from ..frozen.facts import ModelFacts
from ..frozen.grouped_attention import is_grouped, shape_of
from ..frozen.interception import release
from ..frozen.modules import Modules, every_module
from ..frozen.state import adapters_on, computing_kind, frozen_state
from ..frozen.uncompiled import uncompiled
from ..frozen.weights import differentiable_weights, execution_device
from ..kv.kept_chunks import KeptChunks
from ..kv.pass_caches import GraphCache, PassCache
from ..kv.store import KeyValueStore, sent
from .autograd import gather_for_backward, install_checkpointing, layers_of
from .chunking import pad_right
from .inputs import ChunkRow, PassInput


# Tokens, and key/value columns, that one pass of chunk rows may hold where `chunk_batch_size` is not given
TOKEN_BUDGET = 8192
COLUMN_BUDGET = 65536


class Reader:
    """Runs passes of a frozen decoder-only model.

    Args:
        model (`PreTrainedModel`): The base model, twins injected.
        facts (`ModelFacts`): What its layers are.

    Attributes:
        pool (`KeptChunks`, *optional*): Has the chunks that are not read again. None: all are read.
        reads_in_parts (`bool`): Whether chunk rows and local windows can be read in one pass.
        formats (`list`): Heads and numbers of a head, of keys and of values, in each layer; found by the first passes.
    """

    def __init__(self, model: PreTrainedModel, facts: ModelFacts) -> None:
        self.model = model
        self.sliding_window, self.layer_types = facts.sliding_window, facts.layer_types
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
        self.alibi = Alibi.of(model)
        self.groups = is_grouped(model)
        self.masked = masked_implementation(model)
        self.pool: KeptChunks | None = None
        self.reads_in_parts = (
            exchanges_attention(model) and self.alibi is None and self.takes_positions and self.keeps_logits
        )
        self.formats: list[tuple[list[int], list[int]]] = []
        self._modules: Modules | None = None

    @property
    def device(self) -> torch.device:
        """Where ids go: the device of the embeddings."""
        return execution_device(self.model.get_input_embeddings())

    @property
    def modules(self) -> Modules:
        """The modules of the model, which were found once, and are again when some have been exchanged."""
        if self._modules is None or not self._modules.are_those_of(self.model):
            self.install()
        assert self._modules is not None
        return self._modules

    @property
    def frozen_state(self) -> Hashable:
        """Changes when the frozen weights do."""
        return frozen_state(self.modules.frozen)

    @property
    def adapters(self) -> Hashable:
        """Which adapters are on: ours, and others in the base."""
        modules = self.modules if self._modules is None else self._modules  # asked for every token
        return adapters_on(modules.adapted)

    def install(self) -> None:
        """Let the model's parts ask for the pass that is running."""
        self._modules = Modules.of(self.model)
        install_attention(self._modules.every)
        install_checkpointing(self._modules.every)
        if self.alibi is not None:
            self.alibi.install()

    def uninstall(self) -> None:
        """Leave the model as it was."""
        every = every_module(self.model)
        uninstall_attention(every)
        for layer in layers_of(every):
            release(layer)
        if self.alibi is not None:
            self.alibi.uninstall()
        self._modules = None

    @property
    def sharded(self) -> bool:
        """Whether every process holds a part of each weight (ZeRO-3, FSDP).

        Then a pass gathers weights from all processes, and all must make the same passes in the same order.
        """
        # FSDP puts some together before the model runs, and others layer by layer
        weights = (weight for module in self.modules.every for weight in module._parameters.values())
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
        there = self._sent_layouts(inputs, device)
        mask: Any = self._masks(there)
        running = Pass(candidates, self.masked, self.groups, record=record, checkpoints=torch.is_grad_enabled())
        if self.groups:
            whole = self.alibi is None and self.layer_types == {"full_attention"}
            running.shape = shape_of(inputs.visible, whole)
        if self.alibi is not None:  # its attention modules take the mask; the model itself one to count keys with
            keys = there.key_index if there.layout is None else there.key_index[there.layout]
            running.biases = self.alibi.given(keys, next(iter(mask.values())))
            mask = torch.ones(len(inputs.tokens), inputs.visible.shape[-1], device=device)
        output = self.call(inputs.tokens, inputs.positions, mask, cache, running, logits)
        if isinstance(cache, GraphCache):
            gather_for_backward(cache, self.modules.every)
        return output

    def call(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor],
        cache: Cache,
        running: Pass,
        logits: int | torch.Tensor,
    ) -> torch.Tensor:
        """Call the model, while `running` is the pass that runs.

        Args:
            tokens, positions (`torch.LongTensor` of shape (rows, tokens)): Ids and their positions.
            mask (`torch.Tensor` or `dict[str, torch.Tensor]`): What the model is given as a mask: one, or one for each
                type of layer.
            cache (`Cache`): Takes keys and values.
            running (`Pass`): What the model's parts ask for.
            logits (`int` or `torch.LongTensor`): As in `run`, or where the tokens stand that need logits.
        """
        if isinstance(mask, dict) and len(mask) == 1:
            (mask,) = mask.values()
        arguments: dict[str, Any] = {
            "input_ids": sent(tokens, self.device),
            "attention_mask": mask,
            CACHE: cache,
            "use_cache": True,
        }
        if self.takes_positions:
            arguments["position_ids"] = sent(positions, self.device)
        some = isinstance(logits, torch.Tensor)
        # a token of a stream follows another: the modules are the same
        modules = self._modules if some and self._modules is not None else self.modules
        with self._frozen(modules), running.running():
            if not some and not logits:
                return self.model.base_model(**arguments)[0]
            if self.keeps_logits:
                arguments["logits_to_keep"] = logits
            found = self.model(**arguments).logits
            return found if some else found[:, -cast(int, logits) :]

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
            computing = computing_kind(self.model, self.device), self.frozen_state
            self.pool.fill(computing, store, first_row, (chunks, starts), read)

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
                with torch.inference_mode(False), torch.no_grad(), self._frozen(self.modules):
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

    def plain_logits(
        self, ids: torch.Tensor, logits: int, mask: torch.Tensor | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """Logits (rows, `logits`, vocabulary) of the last tokens, as the base model gives.

        Args:
            ids (`torch.LongTensor` of shape (rows, tokens)): They follow what `cache` holds.
            logits (`int`): How many of the last tokens of each row need logits.
            mask (`torch.LongTensor` of shape (rows, held tokens + tokens), *optional*): 0 at padding, which is on the
                left. None: there is none.
            cache (`Cache`, *optional*): One of transformers. None: `ids` are all there is.
        """
        ids = sent(ids, self.device)
        mask = torch.ones_like(ids) if mask is None else sent(mask, self.device)
        arguments: dict[str, Any] = {"use_cache": False} if cache is None else {"use_cache": True, CACHE: cache}
        if self.takes_positions and cache is not None:
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if self.keeps_logits:
            arguments["logits_to_keep"] = logits
        with self._frozen(self.modules):
            return self.model(input_ids=ids, attention_mask=mask, **arguments).logits[:, -logits:]

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

    def masks(self, inputs: PassInput) -> dict[str, torch.Tensor]:
        """Additive masks (rows, 1, tokens, columns) on the device, one for each type of layer."""
        return self._masks(self._sent_layouts(inputs, self.device))

    def _masks(self, inputs: PassInput) -> dict[str, torch.Tensor]:
        masks = {}
        rows, dtype = len(inputs.tokens), self.model.dtype
        for kind in self.layer_types:
            visible = inputs.visible
            if kind == "sliding_attention" and self.sliding_window is not None:
                visible = inputs.within(self.sliding_window)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            mask = mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
            masks[kind] = mask.expand(rows, -1, -1, -1) if inputs.layout is None else mask[inputs.layout]
        return masks

    @contextlib.contextmanager
    def _frozen(self, modules: Modules) -> Iterator[None]:
        """Evaluation mode: the base is frozen, its dropout off; nor may its layers checkpoint, which would drop our
        cache. It is in that mode all the time (`FocusModel.train`), unless somebody put it into another by hand.
        """
        training = [module for module in modules.every if module.training]
        for module in training:
            module.training = False
        try:
            with differentiable_weights(modules.four_bit), uncompiled():
                yield
        finally:
            for module in training:
                module.training = True
