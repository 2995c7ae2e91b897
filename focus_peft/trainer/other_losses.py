"""Arguments that ask for another loss than the model's own two, which a focus adapter cannot be trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


# Each with the value that asks for nothing
OTHER_LOSSES: dict[str, Any] = {"label_smoothing_factor": 0.0, "neftune_noise_alpha": None, "loss_type": "nll"}


def refuse_other_losses(args: Any, compute_loss_func: Callable | None = None) -> None:
    """Raise a ValueError for a loss that would be computed from logits, or another input than the documents.

    Args:
        args: Training arguments, transformers' or TRL's.
        compute_loss_func (`Callable`, *optional*): As for transformers' `Trainer`.
    """
    given = {name: getattr(args, name, default) for name, default in OTHER_LOSSES.items()}
    given["compute_loss_func"] = compute_loss_func
    for name, value in given.items():
        if value not in (None, OTHER_LOSSES.get(name)):
            raise ValueError(
                f"`{name}` is {value!r}, but an adapter is trained with its own two losses, on spans that the frozen "
                "model reads in several passes, and with nothing else; leave it out."
            )
