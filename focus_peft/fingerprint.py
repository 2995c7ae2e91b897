"""A fingerprint of a base model, so that what one model read is never shown to another."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from peft.utils.integrations import gather_params_ctx
from torch import nn
from transformers import PreTrainedModel


# Values sampled from each weight
SAMPLES = 64


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@dataclass(frozen=True)
class Fingerprint:
    """What tells base models apart.

    Attributes:
        model_type (`str`): For example "llama".
        shape (`str`): Layers, hidden size, key/value heads, vocabulary.
        dtype (`str`): The dtype of the weights.
        weights (`str`): A digest of values sampled from every frozen weight.
    """

    model_type: str
    shape: str
    dtype: str
    weights: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> Fingerprint:
        """The fingerprint of a base model. Twins do not count."""
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        shape = f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, {heads} kv heads, vocabulary {config.vocab_size}"
        samples = hashlib.sha256()
        for _, parameter in _frozen_parameters(model):
            with gather_params_ctx(parameter, modifier_rank=None):  # empty outside of this under ZeRO-3
                flat = parameter.detach().reshape(-1)
                step = max(1, flat.numel() // SAMPLES)
                values = flat[::step][:SAMPLES].clone()
            samples.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return cls(config.model_type, shape, str(model.dtype), samples.hexdigest()[:16])

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def check(self, other: dict[str, Any]) -> None:
        """Raise a ValueError that names the first difference between this model and `other`, as `to_dict` gave it."""
        for name, mine in asdict(self).items():
            if other.get(name) != mine:
                raise ValueError(
                    f"it was made with another model (`{name}` was {other.get(name)!r}, this model has {mine!r}); encode "
                    "the documents again"
                )


def _frozen_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if "focus_" not in name and cast(Any, parameter).__dict__.get("ds_numel", parameter.numel())
    ]
