"""Adapter files: saved whole or not at all, checked when they are loaded, rounded when they are published."""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..adapter_file import (
    WEIGHTS_FILE,
)
from .card import CARD_FILE


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
        from .card import write_card

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
