"""An adapter's weight file, and what it must hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


WEIGHTS_FILE = "adapter_model.safetensors"


def check_adapter_file(folder: str | os.PathLike) -> None:
    """Raise a ValueError if a local folder holds a damaged adapter file, or one without any weight of a twin."""
    file = Path(folder) / WEIGHTS_FILE
    if not file.is_file():
        return
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
    except SafetensorError as error:
        raise ValueError(
            f"The adapter file {str(file)!r} is damaged or was not written to its end ({error}); download or save it "
            "again."
        ) from error
    if not any(name.startswith("base_model.model.") and ".focus_" in name for name in names):
        raise ValueError(  # PEFT would leave all twins untrained, with a warning at most
            f"The adapter file {str(file)!r} has no weight of a twin{f', but {names[0]!r}' if names else ''}; save "
            "the adapter again, by `save_pretrained` of its `PeftModel`."
        )


def check_adapter_weights(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Compare the weights of an adapter file with the twins that they are for.

    Raises:
        ValueError: if weights are missing, belong nowhere, have other shapes, or are not finite.
    """
    _refuse(sorted(set(expected) - set(given)), "lacks weights for projections of this model")
    _refuse(sorted(set(given) - set(expected)), "has weights for projections that this model lacks")
    for name, weight in given.items():
        if weight.shape != expected[name].shape:
            raise ValueError(
                f"The adapter's weight {name!r} has the shape {tuple(weight.shape)}, but this model needs "
                f"{tuple(expected[name].shape)}; the adapter was made for another model, or its `r` was changed."
            )
        if weight.device.type != "meta" and not bool(torch.isfinite(weight).all()):
            raise ValueError(
                f"The adapter's weight {name!r} holds NaN or infinite values; the file is damaged or its training "
                "diverged. Load an earlier checkpoint."
            )


def leave_out_other_adapters(folder: Path) -> None:
    """Take the weights of other adapters out of a file that was just saved: PEFT 0.18 writes all into each."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as tensors:
        metadata, names = tensors.metadata(), list(tensors.keys())
        # The adapter's own weights have lost its name: `….focus_A.weight`, not `….focus_A.other.weight`
        own = [name for name in names if not re.search(r"\.focus_\w+\.[^.]+\.", name)]
        weights = {name: tensors.get_tensor(name) for name in own} if len(own) < len(names) else None
    if weights is not None:
        save_file(weights, file, metadata=metadata)


def _refuse(names: Iterable[str], what: str) -> None:
    names = list(names)
    if names:
        raise ValueError(
            f"The adapter {what}, such as {names[0]!r} ({len(names)} in all); it was made for another architecture. "
            "Load it on the model that its `base_model_name_or_path` names."
        )
