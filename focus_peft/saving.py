"""Adapter files: saved whole or not at all, checked when they are loaded, rounded when they are published."""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def saves_whole(save_pretrained: Callable[..., None], peft_type: Any) -> Callable[..., None]:
    """Wrap `PeftModel.save_pretrained`, which writes in place, for models with an adapter of the given type.

    Everything is written to a hidden folder and moved when it is complete, so a full disk leaves what was there before.
    PEFT offers no hook for this; other adapters are saved as ever.
    """

    @functools.wraps(save_pretrained)
    def save(self: Any, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        config = focus_config(self, peft_type)
        if config is None or os.path.isfile(save_directory) or not kwargs.get("is_main_process", True):
            return save_pretrained(self, save_directory, *args, **kwargs)
        from .card import write_card  # which needs the configuration, which needs this file

        target = Path(save_directory)
        # inside a folder that is there: it may be where a disk is mounted, or the only place that may be written to
        place = target if target.is_dir() else target.parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=place) as folder:
            scratch = Path(folder)
            try:
                card = _read(target / CARD_FILE)
                if card is not None:  # PEFT completes a card that is there
                    shutil.copy(target / CARD_FILE, scratch / CARD_FILE)
                save_pretrained(self, str(scratch), *args, **kwargs)
                _leave_out_others(scratch, list(self.peft_config))
                write_card(scratch / CARD_FILE, card, config)
            except (OSError, RuntimeError, SafetensorError) as error:
                # a full disk is a SafetensorError to safetensors, and a RuntimeError of its zip writer to torch.save
                if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                    raise
                raise OSError(f"`save_directory` {str(target)!r} could not be written: {error}.") from error
            for file in sorted(path for path in scratch.rglob("*") if path.is_file()):
                place = target / file.relative_to(scratch)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)

    save.saves_whole = True  # type: ignore[attr-defined]
    return save


def _leave_out_others(folder: Path, adapters: list[str]) -> None:
    """Take the weights of other adapters out of every file: PEFT 0.18 writes those of all adapters into each."""
    for file in folder.rglob(WEIGHTS_FILE):
        with safe_open(file, framework="pt") as tensors:
            metadata, names = tensors.metadata(), list(tensors.keys())
            # its own have lost the adapter's name: `….focus_A.weight`
            own = [
                name for name in names if not any(re.search(rf"\.focus_\w+\.{re.escape(a)}\.", name) for a in adapters)
            ]
            weights = {name: tensors.get_tensor(name) for name in own} if len(own) < len(names) else None
        if weights is not None:
            save_file(weights, file, metadata=metadata)


def focus_config(model: Any, peft_type: Any) -> Any:
    """The configuration of a model's first adapter of the given type, or None."""
    return next((c for c in model.peft_config.values() if getattr(c, "peft_type", None) == peft_type), None)


def _read(file: Path) -> str | None:
    """A text, or None where there is no file."""
    return file.read_text(encoding="utf-8") if file.is_file() else None


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
            f"The adapter file {str(file)!r} is damaged or was not written to its end ({error}); download or save it again."
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
                    f"`dtype` is {dtype!r}, whose range is too small for the weight {name!r}; choose 'bfloat16', or leave it out."
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
            f"The adapter's weight {name!r} holds NaN or infinite values; its training diverged. Publish an earlier checkpoint."
        )


def _refuse(names: Iterable[str], what: str) -> None:
    names = list(names)
    if names:
        raise ValueError(
            f"The adapter {what}, such as {names[0]!r} ({len(names)} in all); it was made for another architecture. Load "
            "it on the model that its `base_model_name_or_path` names."
        )
