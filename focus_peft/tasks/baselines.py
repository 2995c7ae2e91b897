"""Other ways to read a long input, to hold the adapter against: with some tokens left out, or positions scaled, or twins untrained."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from ..chunking import cut, with_bos
from ..layer import TwinLayer
from .methods import Adapter, LabelBlock, Method, label_blocks, token_losses


class LocalWindow(Method):
    """Truncation: the base model reads the tokens that the adapter's local window holds, and nothing before them.

    BOS goes before them where the adapter would put it (`add_bos`).
    """

    def generate(self, ids: list[int], new_tokens: int) -> list[int]:
        self._check(ids)
        start = max(0, len(ids) - self.settings.sizes.local)
        return self._generate(self.base, self.read(ids, start), new_tokens)

    def losses(self, ids: list[int], labels: int) -> torch.Tensor:
        self._check(ids, labels)
        found = []
        for block in self.blocks(len(ids), labels):
            read = self._tensor(self.read(ids[: block.first], block.start) + ids[block.first : block.end - 1])
            mask = torch.ones_like(read)
            with torch.no_grad():
                output = self.base(read, attention_mask=mask, use_cache=False, logits_to_keep=block.end - block.first)
            found.append(token_losses(output.logits[0], ids[block.first : block.end]))
        return torch.cat(found)

    def read(self, ids: list[int], start: int) -> list[int]:
        """What the base model reads instead of `ids`, whose local window starts at `start`."""
        return with_bos(ids[start:], self.settings.bos if start else None)

    def blocks(self, tokens: int, labels: int) -> list[LabelBlock]:
        """Labels that are predicted in one pass."""
        return label_blocks(tokens, labels, self.settings.sizes)


class FullAttention(LocalWindow):
    """The base model reads everything, as far as its window goes: the upper bound."""

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        if tokens <= self.facts.max_positions:
            return None
        return f"{tokens} tokens are more than the {self.facts.max_positions} positions of the model."

    def read(self, ids: list[int], start: int) -> list[int]:
        return ids

    def blocks(self, tokens: int, labels: int) -> list[LabelBlock]:
        return [LabelBlock(0, tokens - labels, tokens)]


class ScaledRope(FullAttention):
    """Full attention beyond the model's window, with rotary positions scaled by transformers; within the window, the base model.

    Args:
        model (`PeftModel`): Its base model must have plain rotary positions.
        kind (`str`): "linear" (position interpolation), "dynamic" (NTK) or "yarn". The first and the last are scaled by how many
            times longer than the window the input is, answer included.
    """

    def __init__(self, model: Any, kind: str) -> None:
        super().__init__(model)
        rope = getattr(self.base.config, "rope_parameters", None) or {}
        if rope.get("rope_type") != "default" or not self._rotary():
            raise ValueError(
                f"`model` is a {type(self.base).__name__}, which has no plain rotary positions that could be scaled "
                f"({rope or 'no rope_parameters'}); leave out {kind!r}."
            )
        self.kind = kind

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        return None

    def generate(self, ids: list[int], new_tokens: int) -> list[int]:
        with self.scaled(len(ids) + new_tokens):
            return super().generate(ids, new_tokens)

    def losses(self, ids: list[int], labels: int) -> torch.Tensor:
        with self.scaled(len(ids)):
            return super().losses(ids, labels)

    @contextlib.contextmanager
    def scaled(self, tokens: int) -> Iterator[None]:
        """Within the context, the base model's positions are scaled for so many tokens."""
        if tokens <= self.facts.max_positions:
            yield
            return
        config = copy.deepcopy(self.base.config)
        config.rope_parameters = {**config.rope_parameters, **self.parameters(tokens)}
        replaced = [(parent, name, getattr(parent, name)) for parent, name in self._rotary()]
        try:
            for parent, name, module in replaced:
                setattr(parent, name, type(module)(config).to(module.inv_freq.device))
            yield
        finally:
            for parent, name, module in replaced:
                setattr(parent, name, module)

    def parameters(self, tokens: int) -> dict[str, Any]:
        """Transformers' `rope_parameters`."""
        if self.kind == "dynamic":  # grows with the input by itself
            return {"rope_type": "dynamic", "factor": 1.0}
        scaled = {"rope_type": self.kind, "factor": tokens / self.facts.max_positions}
        return scaled | ({"original_max_position_embeddings": self.facts.max_positions} if self.kind == "yarn" else {})

    def _rotary(self) -> list[tuple[torch.nn.Module, str]]:
        return [
            (parent, name)
            for parent in self.base.modules()
            for name, module in parent.named_children()
            if type(module).__name__.endswith("RotaryEmbedding")
        ]


class BM25(LocalWindow):
    """Retrieval: the base model reads the best of the adapter's chunks, in their order in the text, and then the local window.

    Scores are BM25's (k1 = 1.2, b = 0.75) with token ids as words; the query is the adapter's dynamic prompt.

    Args:
        chunks (`int`): Chunks that are read. Default: 4.
    """

    def __init__(self, model: Any, chunks: int = 4) -> None:
        super().__init__(model)
        self.chunks = chunks

    def read(self, ids: list[int], start: int) -> list[int]:
        pieces = cut(ids[:start], self.settings.sizes.chunk)
        scores = bm25(pieces, ids[max(start, len(ids) - self.settings.sizes.prompt) :])
        best = sorted(sorted(range(len(pieces)), key=lambda number: -scores[number])[: self.chunks])
        read = [token for number in best for token in pieces[number]] + ids[start:]
        return with_bos(read, self.settings.bos if start else None)

    def refusal(self, tokens: int, new_tokens: int = 1) -> str | None:
        sizes = self.settings.sizes
        longest = self.chunks * sizes.chunk + sizes.local + sizes.chunk + 1
        if min(tokens, longest) <= self.facts.max_positions:
            return None
        return f"{self.chunks} chunks and a local window are more than the {self.facts.max_positions} positions of the model."


def bm25(documents: list[list[int]], query: list[int], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """The BM25 score of every document for a query; each different word of the query counts once."""
    counts = [Counter(document) for document in documents]
    mean = sum(map(len, documents)) / max(1, len(documents))
    scores = [0.0] * len(documents)
    for word in sorted(set(query)):
        held = sum(word in count for count in counts)
        weight = math.log(1 + (len(documents) - held + 0.5) / (held + 0.5))
        for number, count in enumerate(counts):
            norm = k1 * (1 - b + b * len(documents[number]) / mean)
            scores[number] += weight * count[word] * (k1 + 1) / (count[word] + norm)
    return scores


class UntrainedTwins(Adapter):
    """The adapter as it was before training: candidates go through the frozen projections."""

    def generate(self, ids: list[int], new_tokens: int) -> list[int]:
        with untrained(self.model):
            return super().generate(ids, new_tokens)

    def losses(self, ids: list[int], labels: int) -> torch.Tensor:
        with untrained(self.model):
            return super().losses(ids, labels)


@contextlib.contextmanager
def untrained(model: Any) -> Iterator[None]:
    """Within the context, no twin of the model is used."""
    layers = [layer for layer in model.modules() if isinstance(layer, TwinLayer)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was in zip(layers, before):
            layer._disable_adapters = was
