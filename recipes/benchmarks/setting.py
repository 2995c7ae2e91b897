"""What all measurements share: the model, a long document, plain passes of the base model, and the clock."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from lib.base_model import ModelArguments, load_model
from peft import get_peft_model
from transformers import DynamicCache

from focus_peft import FocusConfig
from focus_peft.frozen.compat import CACHE
from focus_peft.passes.chunking import cut
from focus_peft.passes.reader import TOKEN_BUDGET
from focus_peft.trainer.metrics import peak_memory


# Keys and values of one layer, (2, rows, kv_heads, tokens, head_dim): of chunk rows, and of the local window
States = list[torch.Tensor]
# So many characters of text are tokenized for each token that is wanted, more than a token has on average
CHARACTERS_PER_TOKEN = 12


def load(options: dict[str, Any], **fields: Any) -> tuple[Any, Any]:
    """The model with an untrained adapter, which is as fast as a trained one; and its tokenizer."""
    transformers.logging.set_verbosity_error()
    base, tokenizer = load_model(ModelArguments(options["model"], dtype=options["dtype"]))
    torch.manual_seed(0)
    return get_peft_model(base, FocusConfig(**fields)).eval(), tokenizer


def document(tokenizer: Any, tokens: int) -> torch.Tensor:
    """Ids of shape (1, tokens): Python's language reference, as `help()` has it, and standard library."""
    text = "\n".join(topics.values()) + "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(argparse.__file__).parent.glob("*.py"))
    )
    ids = tokenizer(text[: tokens * CHARACTERS_PER_TOKEN], return_tensors="pt", verbose=False).input_ids
    return ids.repeat(1, -(-tokens // ids.shape[1]))[:, :tokens]


def sizes_of(options: dict[str, Any]) -> dict[str, Any]:
    """The sizes of the configuration, out of all options; None: what fits the model."""
    return {name: options.get(name) for name in ("chunk_size", "local_size", "prompt_size")}


def timed(function: Callable[[], Any]) -> float:
    """Seconds of a call, without autograd."""
    begin = time.perf_counter()
    with torch.no_grad():
        function()
    return time.perf_counter() - begin


def with_peak(result: dict[str, Any]) -> dict[str, Any]:
    """A result, and the most memory that this process has held so far, in GB (10^9 bytes)."""
    return {**result, "peak_memory_gb": round(peak_memory(torch.device("cpu")) / 1e9, 2)}


def heads_of(config: Any) -> tuple[int, int]:
    """How many heads of keys and values a layer has, and how many features each."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_key_value_heads, width


def drawn_cache(base: Any, tokens: int) -> DynamicCache:
    """What the base model would have cached of so many tokens, drawn at random: attending to it takes as long."""
    cache = DynamicCache(config=base.config)
    for layer in range(base.config.num_hidden_layers):
        heads, width = heads_of(base.config)
        keys, values = torch.randn(2, 1, heads, tokens, width, dtype=base.dtype, device=base.device)
        cache.update(keys, values, layer)
    return cache


class Pieces:
    """A document as the method splits it, for passes of the base model over the same number of tokens in the same
    shapes.

    Args:
        ids (`torch.Tensor` of shape (1, tokens)): The document.
        settings (`Settings`): The sizes.
    """

    def __init__(self, ids: torch.Tensor, settings: Any) -> None:
        sizes = settings.sizes
        row = ids[0].tolist()
        self.sizes, self.nominal = sizes, settings.frames.nominal
        self.chunks = cut(row[: -sizes.local], sizes.chunk)
        self.local = row[-sizes.local :]
        self.rows = TOKEN_BUDGET // sizes.chunk or 1  # of a batch, as `generate` reads them

    def read(self, base: Any) -> None:
        """The products and attention that reading takes: all chunks, the prompt behind each, and the window."""
        prompt = torch.tensor(self.local[-self.nominal :], device=base.device)
        for begin in range(0, len(self.chunks), self.rows):
            batch = [chunk for chunk in self.chunks[begin : begin + self.rows] if len(chunk) == self.sizes.chunk]
            if batch:
                cache = base.base_model(torch.tensor(batch, device=base.device), use_cache=True)[CACHE]
                base.base_model(prompt.expand(len(batch), -1), use_cache=True, **{CACHE: cache})
        self.forward_local(base, 0)

    def forward_local(self, base: Any, more: int) -> None:
        """One pass over the window and `more` tokens, with logits of the last one."""
        ids = torch.tensor([(self.local * 2)[: len(self.local) + more]], device=base.device)
        base(ids, use_cache=False, logits_to_keep=1)

    def held_states(self, base: Any) -> list[States]:
        """Of each layer, keys and values as they are held before a streaming step, drawn at random: of chunks with
        prompts, and of the window with candidates.
        """
        heads, width = heads_of(base.config)
        shapes = [(len(self.chunks), self.sizes.chunk + self.nominal), (1, len(self.chunks) + len(self.local))]
        return [
            [torch.randn(2, rows, heads, length, width, dtype=base.dtype) for rows, length in shapes]
            for _ in range(base.config.num_hidden_layers)
        ]

    def step(self, base: Any, held: list[States]) -> None:
        """One pass of 2 · chunks + 1 tokens; the attention of two tokens to each chunk and of one to the window."""
        base(torch.full((1, 2 * len(self.chunks) + 1), 9), use_cache=False, logits_to_keep=1)
        groups = base.config.num_attention_heads // base.config.num_key_value_heads
        for layer in held:
            for (keys, values), tokens in zip(layer, (2, 1)):
                query = keys.new_ones(*keys.shape[:2], groups * tokens, keys.shape[-1])
                torch.nn.functional.scaled_dot_product_attention(query, keys, values)
