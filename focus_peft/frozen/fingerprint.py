"""A fingerprint of a base model, so that what one model read is never shown to another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device
from peft.utils.integrations import gather_params_ctx
from transformers import PreTrainedModel

from .modules import every_module
from .state import other_adapters
from .weights import differentiable_weights, execution_device, stored_tensors


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
        weights (`str`): A digest of values sampled from every frozen weight, and of which other adapters are on.
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
        shape = (
            f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, {heads} kv heads, "
            f"vocabulary {config.vocab_size}"
        )
        samples = hashlib.sha256()
        for tensor in _frozen_tensors(model):
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // SAMPLES)
            values = flat[::step][:SAMPLES]
            samples.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        for adapters in other_adapters(every_module(model)):
            samples.update(repr(adapters).encode())
        return cls(config.model_type, shape, str(model.dtype), samples.hexdigest()[:16])

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def check(self, other: dict[str, Any]) -> None:
        """Raise a ValueError that names the first difference between this model and `other`, as `to_dict` gave it."""
        for name, mine in asdict(self).items():
            if other.get(name) != mine:
                raise ValueError(
                    f"it was made with another model (`{name}` was {other.get(name)!r}, this model has {mine!r}); "
                    "encode the documents again"
                )


def _frozen_tensors(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Everything that frozen layers keep, in the order of their names: a tied weight once, a quantized one in its
    parts.
    """
    own = {id(p): name for name, p in model.named_parameters() if "focus_" not in name}
    head = model.get_output_embeddings()
    tied = model.config.tie_word_embeddings and head is not None
    if (
        tied
        and head.weight is not model.get_input_embeddings().weight
        and execution_device(head) != head.weight.device
    ):
        own.pop(id(head.weight), None)  # offloaded, the tied weight is no longer the same object
    with differentiable_weights(every_module(model)):  # as they were loaded, not as they were repacked
        for module in model.modules():
            mine = {name: own.pop(id(p)) for name, p in module.named_parameters(recurse=False) if id(p) in own}
            packed = [buffer for name, buffer in module.named_buffers(recurse=False) if name == "qweight"]  # GPTQ, AWQ
            if not mine and not packed:
                continue
            parameters = [getattr(module, name) for name in mine]
            # under ZeRO-3, weights are empty outside of the second context
            with align_module_device(module), gather_params_ctx(parameters, modifier_rank=None):
                for tensor in (*(getattr(module, name) for name in mine), *packed):
                    yield from (part for part in stored_tensors(tensor) if part.numel())
