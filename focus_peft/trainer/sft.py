"""`FocusSFTTrainer`: the trainer for users of TRL, which must be installed: it is imported with this module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig, SFTTrainer

from ..config import FocusConfig
from .arguments import FocusArguments
from .trainer import FocusTrainer


@dataclass
class FocusSFTConfig(FocusArguments, SFTConfig):
    """TRL's `SFTConfig`, with what [`FocusTrainingArguments`] adds: `distractors`, `max_loss`, `log_local_loss` and
    `eval_tasks_steps`. `max_length` is None here: a long document is not cut off.
    """

    max_length: int | None = field(default=None, metadata={"help": "Cut documents off behind so many tokens."})


class FocusSFTTrainer(FocusTrainer, SFTTrainer):
    """
    TRL's `SFTTrainer` with the losses of FocusLLM.

    Datasets, chat templates and masks are TRL's; the loss, logs and checkpoints are `FocusTrainer`'s. Documents keep
    their boundaries: a span never crosses from one into the next, so packing is refused. [`FocusSFTConfig`] has what
    `FocusTrainer` can do besides, such as `distractors`. With TRL's own `SFTConfig`, documents are truncated to 1,024
    tokens unless `max_length` says otherwise.

    Args:
        *args, **kwargs: As for `SFTTrainer`, and `eval_tasks` as for `FocusTrainer`.
            `peft_config=FocusConfig(...)` makes the adapter; or give a model that has one.

    Raises:
        ValueError: if `packing`, `eval_packing`, `padding_free` or another argument that cannot work is set, or there
            is no focus adapter.

    Example:

    ```python
    from datasets import Dataset
    from focus_peft import FocusConfig
    from focus_peft.sft import FocusSFTConfig, FocusSFTTrainer

    conversation = [
        {"role": "user", "content": open("README.md").read() + " What is a chunk?"},
        {"role": "assistant", "content": "One of the equal pieces that a text is cut into."},
    ]
    trainer = FocusSFTTrainer(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        args=FocusSFTConfig(output_dir="outputs/sft", max_steps=1000, bf16=False),
        train_dataset=Dataset.from_list([{"messages": conversation}] * 8),
        peft_config=FocusConfig(r=64),
    )
    trainer.train()
    ```
    """

    def __init__(self, model: Any, args: Any = None, **kwargs: Any) -> None:
        config = kwargs.get("peft_config")
        if config is not None and not isinstance(config, FocusConfig):
            raise ValueError(
                f"`peft_config` is a {type(config).__name__}, which makes no focus adapter; give a `FocusConfig`."
            )
        super().__init__(model, args, **kwargs)
