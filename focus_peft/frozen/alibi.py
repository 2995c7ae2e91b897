"""ALiBi (arXiv 2108.12409): biases by key index, for models that take no positions.

Such models count the keys of their cache from its first column, and add `slope * index` to the scores of every key.
Here keys stand where there was room for them, several questions may share a chunk row, and some columns are stale. So
in every pass the attention modules are given the biases of the order that is meant: `[chunk][dynamic prompt]` in a
chunk row, and `[candidates][local window]` in the local pass. There the candidates are a true prefix: candidate i of n
has the index i, local token j the index n + j, in both ways of decoding.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .current_pass import current_pass
from .weights import execution_device


class Alibi:
    """The biases of one model.

    Args:
        build (`Callable[[int], torch.Tensor]`): The model's own biases (heads, 1, keys) for so many keys, in float32:
            the table that is made of them outlives a cast of the model.
        modules (`list[nn.Module]`): Its attention modules.
        per_row (`bool`): Whether the modules take biases of each row. If not, all rows of a pass need the same
            distances.
        scale (`float`): What the modules multiply biases with.
    """

    def __init__(
        self, build: Callable[[int], torch.Tensor], modules: list[nn.Module], per_row: bool, scale: float
    ) -> None:
        self.build, self.modules, self.per_row, self.scale = build, modules, per_row, scale
        self._table = torch.zeros(0, 0)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Alibi | None:
        """The biases of a model with ALiBi, or None for any other model."""
        inner: Any = model.base_model
        modules = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
        taken = inspect.signature(modules[0].forward).parameters if modules else {}

        def ones(keys: int) -> torch.Tensor:
            return torch.ones(1, keys, dtype=torch.long, device=execution_device(model.get_input_embeddings()))

        if "position_bias" in taken and hasattr(inner, "build_mpt_alibi_tensor"):  # MPT
            return cls(lambda keys: inner.build_mpt_alibi_tensor(inner.num_heads, keys), modules, False, 1.0)
        if "alibi" in taken and hasattr(inner, "build_alibi_tensor"):  # Bloom
            build = inner.build_alibi_tensor
            return cls(lambda keys: build(ones(keys), inner.num_heads, torch.float32), modules, True, 1.0)
        if "alibi" in taken and getattr(model.config, "alibi", False):  # Falcon
            build = sys.modules[type(inner).__module__].build_alibi_tensor
            scale = (model.config.hidden_size // inner.num_heads) ** -0.5
            if model.config._attn_implementation == "eager":  # where Falcon adds them twice
                scale *= 2
            return cls(lambda keys: build(ones(keys), inner.num_heads, torch.float32), modules, True, scale)
        return None

    def given(self, key_index: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """What the attention modules are given for the biases of `key_index`, and `mask`: arguments by name.

        Args:
            key_index (`torch.LongTensor` of shape (rows or 1, columns)): Each key's place in the order that is meant.
            mask (`torch.Tensor` of shape (rows, 1, tokens, columns)): 0 where a key is visible, the dtype's minimum
                elsewhere.
        """
        # columns that nobody sees may have any index; where all rows share biases, only differences matter
        index = key_index.clamp_min(0) if self.per_row else key_index[:1] - key_index[:1].min()
        # no index reaches the number of columns, which is known without asking the device
        bias = self._biases(index.shape[-1])[:, index].to(mask.device)  # (heads, rows or 1, columns)
        if self.per_row:
            hidden = mask == torch.finfo(mask.dtype).min
            biased = (
                (bias.to(mask.dtype) * self.scale).transpose(0, 1)[:, :, None].expand(len(mask), -1, mask.shape[2], -1)
            )
            biased = biased.masked_fill(hidden, torch.finfo(mask.dtype).min)  # (rows, heads, tokens, columns)
            none = mask.new_zeros(len(mask) * len(bias), 1, mask.shape[-1])
            return {"attention_mask": biased, "alibi": none}
        return {"attention_mask": mask != 0, "position_bias": bias[:, :1].expand(-1, mask.shape[2], -1)}

    def install(self) -> None:
        """Let the attention modules take what a pass gives them."""
        for module in self.modules:
            if _with_biases not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_with_biases, with_kwargs=True)

    def uninstall(self) -> None:
        """Undo `install`."""
        for module in self.modules:
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _with_biases]:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)

    def _biases(self, keys: int) -> torch.Tensor:
        """(heads, at least `keys`)."""
        table = self._table  # which another thread may exchange for a smaller one meanwhile
        if table.shape[-1] < keys:
            self._table = table = self.build(2 * keys)[:, 0]
        return table


def _with_biases(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A hook before an attention module: the arguments that the running pass gives replace the model's own."""
    running = current_pass.get()
    return args, kwargs if running is None else {**kwargs, **running.biases}
