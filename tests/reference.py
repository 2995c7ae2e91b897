"""
The method, slow and obvious: one sequence, one chunk, one token at a time. Nothing is imported from focus_peft.

`PlainModel` runs a base model on one row of tokens behind a prefix. `SlowSequence` follows the specification literally
with it. `make_oracle` turns that into a model for transformers' own `generate`, so that every way of generating
(beams, sampling, processors ...) can be compared with the very same loop over logits that were recomputed the slow
way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from families import positions_of
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from focus_peft.frozen.compat import CACHE


KeyValues = list[tuple[torch.Tensor, torch.Tensor]]  # a key and a value of (1, heads, tokens, head_dim) for each layer

# Where position 0 is put in a table of 128 rotations, so that there are some on both sides
ORIGIN = 64


@dataclass(frozen=True)
class Sizes:
    """The settings of the method, in tokens."""

    chunk: int
    local: int
    prompt: int
    bos: int | None
    decoding: str
    positions: int | None = None  # None: more than are ever needed


class Twin(nn.Module):
    """A copy of a wrapped projection's twin, whose parameters have the names that they have there.

    Args:
        layer (`nn.Module`): The wrapped projection.
        config (`FocusConfig`): Its adapter's.
        adapter (`str`): Which of its adapters.
    """

    def __init__(self, layer: nn.Module, config: Any, adapter: str) -> None:
        super().__init__()
        for name in ("focus_twin", "focus_A", "focus_B", "base_layer"):
            setattr(self, name, copy.deepcopy(getattr(layer, name)))
        self.config, self.adapter = config, adapter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.adapter in self.focus_twin:
            return self.focus_twin[self.adapter](x)
        r, alpha = self.config.r, self.config.alpha
        delta = self.focus_B[self.adapter](self.focus_A[self.adapter](x))
        return self.base_layer(x) + (2 * r if alpha is None else alpha) / r * delta


def read_twins(wrapped: nn.Module, adapter: str = "default") -> dict[str, Twin]:
    """The twin of every wrapped projection, by the projection's path in the base model."""
    return {
        name: Twin(module, wrapped.peft_config[adapter], adapter)
        for name, module in wrapped.base_model.model.named_modules()
        if adapter in getattr(module, "focus_twin", {}) or adapter in getattr(module, "focus_A", {})
    }


class PlainModel:
    """A base model, and twins that take over at the last token when asked to.

    Args:
        base (`PreTrainedModel`): A plain model that nobody else uses.
        twins (`dict[str, Twin]`): From [`read_twins`].
        graph (`bool`): Whether gradients may be computed. Defaults to `False`.
    """

    def __init__(self, base: PreTrainedModel, twins: dict[str, Twin], graph: bool = False) -> None:
        self.model, self.graph = base.eval(), graph
        self.positions = positions_of(base.config)
        self.relative = self.positions.startswith("rotary")  # differences count, so rows may start anywhere
        self._twin_at_last = False
        self._read: dict[tuple[Any, ...], tuple[torch.Tensor, KeyValues]] = {}
        for name, twin in twins.items():
            base.get_submodule(name).register_forward_hook(self._hook(twin))

    def _hook(self, twin: Twin) -> Callable[..., torch.Tensor | None]:
        def replace_last(
            module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor | None:
            if not self._twin_at_last:
                return None
            return torch.cat([output[:, :-1], twin(args[0][:, -1:])], dim=1)

        return replace_last

    def run(
        self,
        tokens: Sequence[int],
        first_position: int,
        candidates: KeyValues | None = None,
        past: KeyValues | None = None,
        twin_at_last: bool = False,
    ) -> tuple[torch.Tensor, KeyValues]:
        """Logits (tokens, vocabulary) of `tokens`, and the keys and values that they leave behind.

        Args:
            tokens (`Sequence[int]`): They follow `past`, and see it, each other causally, and all `candidates`.
            first_position (`int`): Position of the first of them.
            candidates, past (`KeyValues`, *optional*): What stands before the tokens.
            twin_at_last (`bool`): The last token is a candidate.
        """
        row = (tuple(map(int, tokens)), first_position, twin_at_last)  # with nothing before it, it is read once
        is_kept = not (self.graph or candidates or past)
        if is_kept and row in self._read:
            return self._read[row]
        self._twin_at_last = twin_at_last
        try:
            with torch.set_grad_enabled(self.graph and torch.is_grad_enabled()):
                output, cache = self._call(tokens, first_position, candidates, past)
        finally:
            self._twin_at_last = False
        left = length(candidates) + length(past)
        found = output.logits[0], [(layer.keys[:, :, left:], layer.values[:, :, left:]) for layer in cache.layers]
        if is_kept:
            self._read[row] = found
        return found

    def candidates(self, chunks: Sequence[list[int]], prompt: list[int], step: int) -> KeyValues:
        """The candidates of all chunks, `step` tokens after the prompt was cut: each row stands where its candidate
        is wanted.
        """
        found = []
        for number, chunk in enumerate(chunks):
            row = chunk + prompt
            first = number + step - (len(row) - 1) if self.relative else 0
            _, key_values = self.run(row, first, twin_at_last=True)
            found.append([(keys[:, :, -1:], values[:, :, -1:]) for keys, values in key_values])
        return joined(found)

    def _call(
        self,
        tokens: Sequence[int],
        first_position: int,
        candidates: KeyValues | None,
        past: KeyValues | None,
        **options: Any,
    ) -> tuple[Any, DynamicCache]:
        """The base model's output for tokens behind candidates and past, and the cache that it leaves."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(joined([candidates, past])):
            cache.update(keys, values, layer)
        place = self._place(len(tokens), first_position, length(past), length(candidates))
        ids = torch.tensor([list(tokens)])
        return self.model(input_ids=ids, **place, use_cache=True, **{CACHE: cache}, **options), cache

    def looked_at(
        self, tokens: Sequence[int], first_position: int, candidates: KeyValues, past: KeyValues | None
    ) -> torch.Tensor:
        """The attention of the last of `tokens` to each candidate, mean over heads and layers, as eager attention has
        it.
        """
        implementation = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        with torch.set_grad_enabled(self.graph and torch.is_grad_enabled()):
            output, _ = self._call(tokens, first_position, candidates, past, output_attentions=True)
        self.model.set_attn_implementation(implementation)
        looks = [weights[0, :, -1, : length(candidates)].mean(0) for weights in output.attentions]
        return torch.stack(looks).mean(0)

    def _place(self, tokens: int, first: int, before: int, candidates: int) -> dict[str, Any]:
        """What tells the model where tokens stand and what they see."""
        if self.positions == "alibi":  # the place of a key in the cache is its position, and nothing is hidden
            return {"attention_mask": torch.ones(1, candidates + before + tokens, dtype=torch.long)}
        first += ORIGIN if self.positions == "rotary table" else 0
        positions = torch.arange(first, first + tokens)[None]
        return {"position_ids": positions, "attention_mask": self._mask(tokens, before, candidates)}

    def _mask(self, tokens: int, before: int, candidates: int) -> torch.Tensor | dict[str, torch.Tensor]:
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        full = self._float_mask(tokens, before, candidates, None)
        sliding = full if window is None else self._float_mask(tokens, before, candidates, window)
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
        if len(kinds) > 1:
            return {"full_attention": full, "sliding_attention": sliding}
        return sliding if kinds == {"sliding_attention"} else full

    def _float_mask(self, tokens: int, before: int, candidates: int, window: int | None) -> torch.Tensor:
        query = torch.arange(before, before + tokens)[:, None]
        key = torch.arange(before + tokens)[None]
        visible = key <= query
        if window is not None:
            visible &= query - key < window
        visible = torch.cat([torch.ones(tokens, candidates, dtype=torch.bool), visible], dim=1)
        dtype = self.model.dtype
        return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[None, None]


def length(key_values: KeyValues | None) -> int:
    return key_values[0][0].shape[2] if key_values else 0


def joined(parts: Iterable[KeyValues | None]) -> KeyValues:
    """Keys and values one behind the other; None and nothing are left out."""
    return [
        (torch.cat([k for k, _ in pieces], 2), torch.cat([v for _, v in pieces], 2))
        for pieces in zip(*[part for part in parts if part], strict=True)
    ]


def cut(tokens: Sequence[int], size: int) -> list[list[int]]:
    """Pieces of `size` tokens from the left, the last one as long as it comes."""
    return [list(tokens[start : start + size]) for start in range(0, len(tokens), size)]


def with_bos(tokens: list[int], bos: int | None) -> list[int]:
    """Tokens behind BOS, unless there is none or they begin with it."""
    return list(tokens) if bos is None or tokens[0] == bos else [bos, *tokens]


class SlowSequence:
    """One sequence, read from its start.

    Args:
        plain (`PlainModel`): The model.
        sizes (`Sizes`): The settings.
        tokens (`Sequence[int]`): All tokens of the input; with a memory, the question.
        memory (`Sequence[int]`, *optional*): Tokens of a document that stands before the question.
    """

    def __init__(
        self, plain: PlainModel, sizes: Sizes, tokens: Sequence[int], memory: Sequence[int] | None = None
    ) -> None:
        self.plain, self.sizes = plain, sizes
        tokens = [int(token) for token in tokens]
        boundary = max(0, len(tokens) - sizes.local)
        self.chunks = cut([int(t) for t in memory] if memory is not None else [], sizes.chunk)
        self.chunks += cut(tokens[:boundary], sizes.chunk)
        self.window = tokens[boundary:]
        self._split()
        self.logits = self._newest()

    def copy(self) -> SlowSequence:
        """An independent sequence in the same state."""
        twin = copy.copy(self)
        twin.chunks, twin.window, twin.prompt = list(self.chunks), list(self.window), list(self.prompt)
        return twin

    def append(self, token: int) -> torch.Tensor:
        """Add a token, the newest, and return its logits (vocabulary,)."""
        if self._add(token):
            self._split()
        elif self.sizes.positions is not None and self.sizes.chunk + len(self.prompt) > self.sizes.positions:
            self._cut_prompt()
        self.logits = self._newest()
        return self.logits

    def extend(self, tokens: Sequence[int]) -> torch.Tensor | None:
        """Add tokens that are handed over at once, of which only the last one's logits are wanted, and return these.

        All but the last are plain. If some of them make the window spill, it is split as it stands when the last one
        has come.
        """
        spilled = False
        for number, token in enumerate(tokens):
            spilled |= self._add(token)
            if not spilled and number < len(tokens) - 1:
                self._newest(plain=True)
        if spilled:
            self._split()
        self.logits = self._newest()
        return self.logits

    def _add(self, token: int) -> bool:
        """Whether the window spilled."""
        self.window.append(int(token))
        self.prompt.append(int(token))
        self.steps += 1
        if len(self.window) < self._limit():
            return False
        surplus = len(self.window) - self.sizes.local
        self.chunks.append(self.window[:surplus])
        self.window = self.window[surplus:]
        return True

    def _limit(self) -> int:
        """The length at which the window goes back to L, and what leaves it is a chunk: as long as the others, unless
        positions end before.
        """
        sizes = self.sizes
        if sizes.positions is None:
            return sizes.local + sizes.chunk
        candidates = len(self.chunks) if self.plain.relative else 0
        growth = sizes.positions - candidates - (sizes.bos is not None) - sizes.local  # each token has a place
        if sizes.decoding == "exact" and self.plain.relative:
            growth //= 2  # all positions of the window move on, too
        return sizes.local + min(sizes.chunk, growth + 1)

    def looked_at(self) -> torch.Tensor:
        """The attention of the newest token to each chunk's candidate (chunks,), as eager attention has it."""
        local = self._local()
        if self.sizes.decoding == "exact":
            return self.plain.looked_at(local, self._position(0), self.candidates, None)
        # the newest token is in the past by now
        past = [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in self.local_past]
        return self.plain.looked_at(local[-1:], self._position(len(local) - 1), self.candidates, past)

    def _cut_prompt(self) -> None:
        self.prompt = with_bos(self.window[-self.sizes.prompt :], self.sizes.bos)
        self.steps = 0  # tokens since

    def _split(self) -> None:
        self._cut_prompt()
        self.local_past: KeyValues | None = None  # streaming: everything in the window but the newest token
        local = self._local()
        if self.sizes.decoding == "streaming" and len(local) > 1:
            _, self.local_past = self.plain.run(local[:-1], self._position(0))

    def _newest(self, plain: bool = False) -> torch.Tensor | None:
        """Logits of the newest token; a plain one sees no candidates and has none, but leaves its key and value."""
        self.candidates = [] if plain else self.plain.candidates(self.chunks, self.prompt, self.steps)
        local = self._local()
        if self.sizes.decoding == "exact":
            return None if plain else self.plain.run(local, self._position(0), self.candidates)[0][-1]
        logits, newest = self.plain.run(local[-1:], self._position(len(local) - 1), self.candidates, self.local_past)
        self.local_past = joined([self.local_past, newest])
        return None if plain else logits[-1]

    def _local(self) -> list[int]:
        return with_bos(self.window, self.sizes.bos) if self.chunks else self.window

    def _position(self, local: int) -> int:
        """Of a token of the local window: behind the candidates, which move on with every step."""
        moved = self.steps if self.chunks and self.sizes.decoding == "exact" else 0
        return len(self.chunks) + local + moved if self.plain.relative else local


class Reference:
    """What a wrapped model should compute.

    Args:
        base (`PreTrainedModel`): A copy of the base model that was never wrapped.
        wrapped (`PeftModel`): The model under test; its twins and its settings are read once, now.
        overrides: Fields of [`Sizes`] that differ from the adapter's configuration.
    """

    def __init__(self, base: PreTrainedModel, wrapped: nn.Module, **overrides: Any) -> None:
        config = wrapped.peft_config["default"]
        fields = {
            "chunk": config.chunk_size,
            "local": config.local_size,
            "prompt": config.prompt_size,
            "bos": base.config.bos_token_id if config.add_bos else None,
            "decoding": config.decoding,
        }
        self.sizes = Sizes(**{**fields, **overrides})
        self.plain = PlainModel(base, read_twins(wrapped))

    def start(self, tokens: Sequence[int], memory: Sequence[int] | None = None) -> SlowSequence:
        """A sequence that has read `tokens` at once, as `generate` does."""
        return SlowSequence(self.plain, self.sizes, tokens, memory)

    def greedy(
        self, tokens: Sequence[int], count: int, memory: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` greedy tokens (count,) and the logits (count, vocabulary) that they were taken from."""
        return greedy_steps(self.start(tokens, memory), count)

    def all_logits(self, tokens: Sequence[int], memory: Sequence[int] | None = None, first: int = 1) -> torch.Tensor:
        """Logits (tokens, vocabulary) with each token the newest in its turn, but for the `first`, read at once."""
        sequence = self.start(tokens[:first], memory)
        return torch.stack([sequence.logits, *[sequence.append(token) for token in tokens[first:]]])


def greedy_steps(sequence: SlowSequence, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Go on greedily; the last of the `count` tokens is not read."""
    rows = [sequence.logits]
    while len(rows) < count:
        rows.append(sequence.append(int(rows[-1].argmax())))
    return torch.stack([row.argmax() for row in rows]), torch.stack(rows)


def make_oracle(
    reference: Reference, prompt_width: int, memories: Sequence[Sequence[int] | None] | None = None
) -> PreTrainedModel:
    """A model for transformers' `generate(..., use_cache=False)` whose logits come from the reference.

    Args:
        reference (`Reference`): Computes the logits.
        prompt_width (`int`): Columns of the `input_ids` that generation starts from.
        memories (`list`, *optional*): The document of each row, shared by what the row is expanded to (beams).
    """
    oracle = copy.deepcopy(reference.plain.model)
    known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], SlowSequence] = {}

    def sequence(owner: int, prompt: tuple[int, ...], answer: tuple[int, ...]) -> SlowSequence:
        key = (owner, prompt, answer)
        if key not in known:
            if answer:
                known[key] = sequence(owner, prompt, answer[:-1]).copy()
                known[key].append(answer[-1])
            else:
                known[key] = reference.start(prompt, memories[owner] if memories is not None else None)
        return known[key]

    def forward(
        self: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = []
        for number, (ids, mask) in enumerate(zip(input_ids, keep.bool(), strict=True)):
            owner = number * len(memories) // len(input_ids) if memories is not None else 0
            prompt = tuple(ids[:prompt_width][mask[:prompt_width]].tolist())
            rows.append(sequence(owner, prompt, tuple(ids[prompt_width:].tolist())).logits)
        return CausalLMOutputWithPast(logits=torch.stack(rows)[:, None])

    oracle.__class__ = type("Oracle", (type(oracle),), {"forward": forward})
    return oracle
