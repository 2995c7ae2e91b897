"""Copies of an adapter's weight file, in another type if that is wanted. No copy has a weight that is not finite."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import safe_open
from safetensors.torch import save_file


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def weights_digest(file: Path) -> str:
    """Tells one adapter file from another."""
    with file.open("rb") as data:
        return sha_fileobj(data).hex()[:16]


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files hold the same. Unlike `filecmp`, it remembers nothing: two writes may share a file's time."""
    return one.stat().st_size == other.stat().st_size and weights_digest(one) == weights_digest(other)


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
