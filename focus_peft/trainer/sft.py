"""`FocusSFTTrainer`: the trainer for users of TRL, which must be installed: it is imported with this module."""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer

from .trainer import FocusTrainer


class FocusSFTTrainer(FocusTrainer, SFTTrainer):
    """
    TRL's `SFTTrainer` with the losses of FocusLLM.

    Datasets, chat templates and masks are TRL's; the loss, logs and checkpoints are `FocusTrainer`'s. Documents keep
    their boundaries: a span never crosses from one into the next, so packing is refused. `SFTConfig` truncates
    documents to 1,024 tokens unless `max_length` says otherwise; give `max_length=None`, or the length of your
    documents.

    Args:
        *args, **kwargs: As for `SFTTrainer`, and `eval_tasks` as for `FocusTrainer`.
            `peft_config=FocusConfig(...)` makes the adapter; or give a model that has one.

    Raises:
        ValueError: if `packing`, `eval_packing` or `padding_free` is set, or there is no focus adapter.
    """

    def __init__(self, model: Any, args: Any = None, **kwargs: Any) -> None:
        for name in ("packing", "eval_packing", "padding_free"):
            if getattr(args, name, None):
                raise ValueError(
                    f"`{name}` is {getattr(args, name)!r}, but spans must not cross from one document into the next; "
                    f"set `{name}=False`."
                )
        super().__init__(model, args, **kwargs)
