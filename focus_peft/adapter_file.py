"""An adapter's weight file: what it must hold, and copies of it in another type."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


WEIGHTS_FILE = "adapter_model.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_adapter_file(folder: str | os.PathLike) -> None:
    """Raise a ValueError if a local folder holds a damaged adapter file."""
    file = Path(folder) / WEIGHTS_FILE
    if not file.is_file():
        return
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except SafetensorError as error:
        raise ValueError(
            f"The adapter file {str(file)!r} is damaged or was not written to its end ({error}); download or save it "
            "again."
        ) from error


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


def copy_weights(source: Path, target: Path, dtype: str | None = None) -> tuple[int, str]:
    """Copy an adapter file, its weights rounded to another type.

    Returns:
        `(int, str)`: how many weights there are, and the names of their types.

    Raises:
        ValueError: if a weight is not finite, or too large for the type.
    """
    if dtype is None:
        shutil.copyfile(source, target)
        return check_weights(source)
    weights = {}
    with safe_open(source, framework="pt") as tensors:
        metadata = tensors.metadata()
        for name in tensors.keys():  # noqa: SIM118 - a file, which only has `keys`
            weight = tensors.get_tensor(name)
            _check_finite(name, weight)
            weights[name] = weight.to(DTYPES[dtype]) if weight.is_floating_point() else weight
            if not bool(torch.isfinite(weights[name]).all()):
                raise ValueError(
                    f"`dtype` is {dtype!r}, whose range is too small for the weight {name!r}; choose 'bfloat16', or "
                    "leave it out."
                )
    save_file(weights, target, metadata=metadata)
    return check_weights(target)


def check_weights(file: Path) -> tuple[int, str]:
    """How many weights an adapter file has, and the names of their types; a ValueError unless all are finite."""
    count, types = 0, set()
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            weight = tensors.get_tensor(name)
            _check_finite(name, weight)
            count += weight.numel()
            types.add(str(weight.dtype).removeprefix("torch."))
    return count, " and ".join(sorted(types))


def _check_finite(name: str, weight: torch.Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(
            f"The adapter's weight {name!r} holds NaN or infinite values; its training diverged. Publish an earlier "
            "checkpoint."
        )


def _refuse(names: Iterable[str], what: str) -> None:
    names = list(names)
    if names:
        raise ValueError(
            f"The adapter {what}, such as {names[0]!r} ({len(names)} in all); it was made for another architecture. "
            "Load it on the model that its `base_model_name_or_path` names."
        )
