"""`FocusConfig`: what a focus adapter is made of, and the window sizes that it reads with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from peft.config import PeftConfig
from peft.utils import TaskType

from .adapter_file import check_adapter_file, leave_out_other_adapters
from .fields import check_module_names, declared_fields, describe
from .foreign_options import FOREIGN, refuse_foreign, why_not
from .options import IGNORE, INFERENCE_FIELDS, OPTIONS, READING_FIELDS, SHARED_FIELDS, STORAGES, FocusOptions
from .peft_type import FOCUS
from .saving import saving_whole


__all__ = ["IGNORE", "INFERENCE_FIELDS", "OPTIONS", "READING_FIELDS", "SHARED_FIELDS", "STORAGES", "FocusConfig"]


@dataclass
class FocusConfig(FocusOptions, PeftConfig):
    """
    Configuration of a focus adapter (FocusLLM, arXiv 2408.11745).

    Sizes are in tokens. `chunk_size`, `local_size` and `prompt_size` are derived from the base model where they are
    None (see `WindowSizes.for_model`), so `FocusConfig()` works on every supported model.

    Raises:
        ValueError: if a field has a value that cannot work; the message names the field, the value and the remedy.

    Example:

    ```python
    from focus_peft import FocusConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    model = get_peft_model(base, FocusConfig(r=16, chunk_size=256, local_size=128, prompt_size=32))
    model.print_trainable_parameters()
    ```
    """

    # Fills in the model card beside a saved configuration. It needs what stands on this file, so `registration` sets
    # it
    complete_card: ClassVar[Callable[[Path, FocusConfig], None] | None] = None

    def __new__(cls, *args: Any, **kwargs: Any) -> FocusConfig:
        refuse_foreign(kwargs)
        return super().__new__(cls)

    def __getattr__(self, name: str) -> Any:
        # TRL's trainers read and set options of LoRA where they add tokens
        sentence = f"{why_not(name)}." if name in FOREIGN else f"{type(self).__name__!r} has no attribute {name!r}"
        raise AttributeError(sentence)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = FOCUS
        if self.task_type is None:
            # With `task_type=None`, PeftModel would go straight to the base model and bypass `FocusModel.generate`
            self.task_type = TaskType.CAUSAL_LM
        if self.task_type != TaskType.CAUSAL_LM:
            raise ValueError(
                f"`task_type` must be CAUSAL_LM, because FocusLLM decodes the next token; got {self.task_type!r}."
            )
        for name in ("target_modules", "exclude_modules", "layers_to_transform"):
            value = getattr(self, name)
            if isinstance(value, (set, frozenset, tuple)):
                setattr(self, name, sorted(value))
            if value is not None and name != "layers_to_transform":
                check_module_names(name, getattr(self, name))
        for option in declared_fields(self):
            if option.metadata["must"] is not None:
                option.metadata["must"].check(f"`{option.name}`", getattr(self, option.name))
        self._check_together()
        if self.storage_dir is not None:
            self.storage_dir = os.fspath(self.storage_dir)

    def _check_together(self) -> None:
        """Refuse fields that exclude each other."""
        if self.prompt_size is not None and self.local_size is not None and self.prompt_size > self.local_size:
            raise ValueError(
                f"`prompt_size` ({self.prompt_size}) is larger than `local_size` ({self.local_size}), but the dynamic "
                "prompt is the end of the local window; choose a smaller `prompt_size`."
            )
        if self.chunk_size is not None and (self.train_min_chunk_size or 0) > self.chunk_size:
            raise ValueError(
                f"`train_min_chunk_size` ({self.train_min_chunk_size}) is larger than `chunk_size` "
                f"({self.chunk_size}), the largest that training draws; choose a smaller one."
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                f"`layers_to_transform` is {self.layers_to_transform!r}, but `target_modules` is an expression, "
                f"{self.target_modules!r}, which says itself what layers it matches; give names, or leave it out."
            )
        if self.alpha is not None and self.r is None:
            raise ValueError(
                f"`alpha` is {self.alpha} but `r` is None; full twins have no scale. Give `r`, or leave `alpha` out."
            )
        if self.read_chunks is not None and self.decoding != "streaming":
            raise ValueError(
                f"`decoding` is {self.decoding!r} and `read_chunks` is {self.read_chunks}, but chunks are read in "
                "full in streaming decoding only; leave `decoding` at 'streaming', or `read_chunks` out."
            )
        if self.storage_dir is not None and self.storage != "disk":
            raise ValueError(
                f"`storage_dir` is {str(self.storage_dir)!r} but `storage` is {self.storage!r}, which makes no files; "
                'choose `storage="disk"`, or leave `storage_dir` out.'
            )
        if self.continuation_weight + self.repetition_weight == 0:
            raise ValueError("`continuation_weight` and `repetition_weight` are both 0; at least one must be above 0.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> FocusConfig:  # type: ignore[override]
        """Load a configuration, as `PeftConfig.from_pretrained`. A damaged adapter file beside it is refused at once.

        Raises:
            ValueError: if the adapter file in a local folder is damaged.
        """
        subfolder = kwargs.get("subfolder") or ""
        check_adapter_file(os.path.join(pretrained_model_name_or_path, subfolder))
        return super().from_pretrained(os.fspath(pretrained_model_name_or_path), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the configuration, as `PeftConfig.save_pretrained`, whole or not at all.

        `PeftModel.save_pretrained` calls this last, so the adapter's weights and card in the folder are finished here.
        """
        folder = Path(save_directory)
        with saving_whole(folder) as scratch:
            # a folder of this machine is of no use on another, and nobody else's business
            PeftConfig.save_pretrained(replace(self, storage_dir=None), str(scratch), **kwargs)
        leave_out_other_adapters(folder)
        if FocusConfig.complete_card is not None:
            FocusConfig.complete_card(folder, self)

    @property
    def scaling(self) -> float:
        """The factor of a low-rank delta, alpha / r."""
        if self.r is None:
            raise ValueError("`scaling` is defined for low-rank twins only, and `r` is None.")
        return (2.0 * self.r if self.alpha is None else self.alpha) / self.r

    def with_overrides(self, **overrides: Any) -> FocusConfig:
        """A copy with some of the fields that matter at inference replaced (None leaves a field as it is).

        Raises:
            ValueError: if a value cannot work, as in the constructor.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        if given.get("storage") in STORAGES and given["storage"] != "disk":
            given.setdefault("storage_dir", None)  # the configured one was for the disk
        chunk = given.get("chunk_size")
        if isinstance(chunk, int) and (self.train_min_chunk_size or 0) > chunk:
            given.setdefault("train_min_chunk_size", None)  # the configured one is for training with larger chunks
        return replace(self, **given) if given else self


FocusConfig.__doc__ = (FocusConfig.__doc__ or "").replace(
    "\n    Raises:", describe(FocusConfig) + "\n\n    Raises:", 1
)
