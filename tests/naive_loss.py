"""
The training losses, slow and obvious: one chunk, one label at a time, every token with a graph. Nothing is imported from
focus_peft.

Every chunk row [chunk][BOS?][prompt] goes through the frozen model from its start, anew for each label, and at its last token hooks put
the twins in. The candidates' keys and values go to the front of an ordinary cache, and the local window is read behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from families import positions_of
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from focus_peft.frozen.compat import CACHE


States = list[tuple[torch.Tensor, torch.Tensor]]  # key and value of every layer, (1, heads, tokens, head_dim)

SPECIAL = -100


@dataclass(frozen=True)
class NaiveSpan:
    """`local` tokens from `start` on, then `labels` tokens to be predicted, given the first `memory` tokens in chunks."""

    memory: int
    chunk: int
    start: int
    local: int
    labels: int


class NaiveFocus:
    """A frozen model with hand-made twins.

    Args:
        base (`PreTrainedModel`): A copy of the base model that nobody wrapped.
        wrapped (`nn.Module`): The model under test; its twins are copied, now.
        decoding (`str`): The label scheme.
        prompt (`int`): P.
        bos (`int`, *optional*): Goes before prompts and windows that do not start with it.
    """

    def __init__(self, base: PreTrainedModel, wrapped: nn.Module, decoding: str, prompt: int, bos: int | None) -> None:
        self.model = base.eval().requires_grad_(False)
        self.decoding, self.prompt, self.bos = decoding, prompt, bos
        self.positions = positions_of(base.config)
        self.relative = self.positions.startswith("rotary")
        self.twin_at_last = False
        # our own copies, by the names that they have in the model under test
        self.parameters = {
            name: parameter.detach().clone().requires_grad_()
            for name, parameter in wrapped.named_parameters()
            if ".focus_" in name
        }
        for path in {name.split(".focus_")[0] for name in self.parameters}:
            module = base.get_submodule(path.removeprefix("base_model.model."))
            config = wrapped.peft_config["default"]
            module.register_forward_hook(self._hook(path, module, config.r, config.alpha))

    def _hook(self, path: str, module: nn.Module, r: int | None, alpha: float | None) -> Callable[..., object]:
        def twin(x: torch.Tensor, frozen: torch.Tensor) -> torch.Tensor:
            if r is not None:
                down = self.parameters[f"{path}.focus_A.default.weight"]
                up = self.parameters[f"{path}.focus_B.default.weight"]
                return frozen + (2 * r if alpha is None else alpha) / r * (x @ down.T @ up.T)
            weight = self.parameters[f"{path}.focus_twin.default.weight"]
            bias = self.parameters.get(f"{path}.focus_twin.default.bias")
            product = x @ (weight.T if isinstance(module, nn.Linear) else weight)
            return product if bias is None else product + bias

        def put_in(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if not self.twin_at_last:
                return None
            return torch.cat([output[:, :-1], twin(args[0][:, -1:], output[:, -1:])], dim=1)

        return put_in

    def gradients(self) -> dict[str, torch.Tensor | None]:
        return {name: parameter.grad for name, parameter in self.parameters.items()}

    def loss(self, ids: Sequence[int], targets: Sequence[int], spans: Sequence[NaiveSpan]) -> torch.Tensor:
        """Mean cross-entropy of the labels of some spans of one document; targets of -100 do not count."""
        losses = [
            F.cross_entropy(logits, torch.tensor(target))
            for span in spans
            for logits, target in zip(self.logits(ids, span), targets[span.start + span.local :])
            if target != SPECIAL
        ]
        return torch.stack(losses).mean()

    def logits(self, ids: Sequence[int], span: NaiveSpan) -> torch.Tensor:
        """Logits (labels, vocabulary) of the labels of a span."""
        ids = list(ids)
        chunks = [ids[at : min(at + span.chunk, span.memory)] for at in range(0, span.memory, span.chunk)]
        window = ids[span.start : span.start + span.local]
        following = ids[span.start + span.local : span.start + span.local + span.labels - 1]
        size = min(self.prompt, span.chunk, span.local)
        prompt = self._with_bos(window[-size:])
        local = self._with_bos(window)
        first = len(chunks) if self.relative else 0
        if self.decoding == "exact":
            candidates = self._candidates(chunks, prompt, 0)
            logits, _ = self._run(local + following, first, candidates, None)
            return logits[-span.labels :]
        _, past = self._run(local[:-1], first, None, None) if len(local) > 1 else (None, None)
        rows = []
        for number, token in enumerate([local[-1], *following]):
            candidates = self._candidates(chunks, prompt + following[:number], number)
            position = first + len(local) - 1 + number
            logits, states = self._run([token], position, candidates, past)
            past = _joined(past, states)
            rows.append(logits[0])
        return torch.stack(rows)

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if self.bos is None or ids[0] == self.bos else [self.bos, *ids]

    def _candidates(self, chunks: list[list[int]], prompt: list[int], step: int) -> States:
        states: States | None = None
        for index, chunk in enumerate(chunks):
            row = chunk + prompt
            start = index + step - (len(row) - 1) if self.relative else 0
            _, everything = self._run(row, start, None, None, twin_at_last=True)
            states = _joined(states, [(keys[:, :, -1:], values[:, :, -1:]) for keys, values in everything])
        assert states is not None
        return states

    def _run(
        self,
        tokens: list[int],
        start: int,
        candidates: States | None,
        past: States | None,
        twin_at_last: bool = False,
    ) -> tuple[torch.Tensor, States]:
        """Logits (tokens, vocabulary), and the keys and values that the tokens leave."""
        cache = DynamicCache()
        before = _joined(candidates, past) if candidates or past else []
        for layer, (keys, values) in enumerate(before):
            cache.update(keys, values, layer)
        self.twin_at_last = twin_at_last
        if self.positions == "alibi":  # positions are places in the cache
            place = {"attention_mask": torch.ones(1, _length(before) + len(tokens), dtype=torch.long)}
        else:
            start += 64 if self.positions == "rotary table" else 0  # the middle of the table
            place = {
                "position_ids": torch.arange(start, start + len(tokens))[None],
                "attention_mask": self._masks(len(tokens), _length(candidates), _length(past)),
            }
        output = self.model(
            input_ids=torch.tensor([tokens]),
            **place,
            use_cache=True,
            **{CACHE: cache},
        )
        self.twin_at_last = False
        left = _length(candidates) + _length(past)
        return output.logits[0], [(layer.keys[:, :, left:], layer.values[:, :, left:]) for layer in cache.layers]

    def _masks(self, tokens: int, candidates: int, past: int) -> torch.Tensor | dict[str, torch.Tensor]:
        def mask(window: float) -> torch.Tensor:
            dtype = self.model.dtype
            mask = torch.full((1, 1, tokens, candidates + past + tokens), torch.finfo(dtype).min, dtype=dtype)
            for query in range(tokens):
                for key in range(past + tokens):
                    if 0 <= past + query - key < window:
                        mask[0, 0, query, candidates + key] = 0
            mask[..., :candidates] = 0
            return mask

        window = getattr(self.model.config, "sliding_window", None) or float("inf")
        kinds = set(getattr(self.model.config, "layer_types", None) or ["sliding_attention"])
        if len(kinds) > 1:
            return {"full_attention": mask(float("inf")), "sliding_attention": mask(window)}
        return mask(window if kinds == {"sliding_attention"} else float("inf"))


def _length(states: States | None) -> int:
    return states[0][0].shape[2] if states else 0


def _joined(front: States | None, back: States | None) -> States:
    if not front or not back:
        return front or back or []
    return [
        (torch.cat([a_keys, b_keys], 2), torch.cat([a_values, b_values], 2))
        for (a_keys, a_values), (b_keys, b_values) in zip(front, back, strict=True)
    ]
