"""`FocusConfig`: what a focus adapter is made of, and the window sizes that it reads with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from peft.config import PeftConfig
from peft.utils import TaskType

from .adapter_file import check_adapter_file, leave_out_other_adapters
from .fields import (
    FLAG,
    FOLDER,
    SCALE,
    SHARE,
    SIZE,
    SIZE_OR_NONE,
    WEIGHT,
    check_target_modules,
    declared,
    declared_fields,
    describe,
    one_of,
)
from .peft_type import FOCUS
from .saving import saving_whole


# The label of a token that is not to be predicted
IGNORE = -100
# Where the keys and values of chunks may be
STORAGES = ("device", "cpu", "int8", "disk")


ADAPTER = "the adapter"
WINDOWS = "the windows"
DECODING = "decoding"
LOSS = "the training loss"


_adapter = partial(declared, ADAPTER)
_windows = partial(declared, WINDOWS, per_call=True)
_decoding = partial(declared, DECODING, per_call=True)
_loss = partial(declared, LOSS)


@dataclass
class FocusConfig(PeftConfig):
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

    target_modules: list[str] | str | None = _adapter(
        None,
        None,
        "The projections that get a twin: names (matched at the end of the module's path) or, as a string, a regular "
        "expression for the whole path. Defaults to q, k, v and o of every attention module, fused ones included, "
        "found by structure.",
    )
    r: int | None = _adapter(
        None,
        SIZE_OR_NONE,
        "None: each twin is a full trainable copy of its projection (the paper's). An integer: the twin is the frozen "
        "projection plus a low-rank delta of rank `r` that starts at zero.",
    )
    alpha: float | None = _adapter(
        None, SCALE, "The delta is scaled by `alpha / r`. Only with `r`. Defaults to `2 * r`."
    )
    chunk_size: int | None = _windows(
        None,
        SIZE_OR_NONE,
        "Tokens in a chunk of the memory, c. Defaults to min(2048, max positions / 4).",
        per_call=False,
    )
    local_size: int | None = _windows(
        None,
        SIZE_OR_NONE,
        "Tokens in the local window, L. Defaults to min(2048, max positions / 4).",
    )
    prompt_size: int | None = _windows(
        None,
        SIZE_OR_NONE,
        "Tokens at the end of the local window that are appended to every chunk as the dynamic prompt, P. Defaults to "
        "min(512, `chunk_size`, `local_size`), the paper's.",
    )
    add_bos: bool = _windows(
        True,
        FLAG,
        "Put the model's BOS, if it has one, before the dynamic prompt and before the local window, unless they "
        "already start with it. Nothing is added where there is no memory.",
    )
    decoding: Literal["streaming", "exact"] = _decoding(
        "streaming",
        one_of("streaming", "exact"),
        '"exact" (the paper\'s): the local window is recomputed under new candidates for every token. "streaming": '
        "local keys and values are cached, and only the newest token sees its candidates. In training it chooses the "
        'label scheme likewise: "streaming" gives every label its own candidates, "exact" one set to a block of '
        "labels.",
    )
    refresh_interval: int = _decoding(
        1,
        SIZE,
        "Candidates are renewed every so many generated tokens. Defaults to every token.",
    )
    chunk_batch_size: int | None = _decoding(
        None,
        SIZE_OR_NONE,
        "How many chunks are read at once. Results do not depend on it. Defaults to as many as fit a token budget.",
        each_process=True,
    )
    top_chunks: int | None = _decoding(
        None,
        SIZE_OR_NONE,
        "Only so many chunks are renewed: those that the first token after the input, or after the window grew into "
        "the memory, attended to most. The others keep their last candidate. Defaults to all.",
    )
    read_chunks: int | None = _decoding(
        None,
        SIZE_OR_NONE,
        "The frozen model reads so many chunks in full: those that the end of the input attends to most, in their "
        "order in the text, in front of the local window. Candidates only choose them, anew when the window grows "
        "into the memory and with each new turn. Not in training. Defaults to none: candidates stand for all chunks "
        "(the paper's).",
    )
    storage: Literal["device", "cpu", "int8", "disk"] = _decoding(
        "device",
        one_of(*STORAGES),
        'Where keys and values of chunks are kept: on the model\'s device ("device"); in CPU memory ("cpu"); on the '
        'device in 8 bits, with a scale for each token and head, which changes results a little ("int8"); or in files '
        'that are mapped into memory ("disk"). In training they are on the device.',
        each_process=True,
    )
    storage_dir: str | None = _decoding(
        None,
        FOLDER,
        'Where the files of `storage="disk"` are made; they vanish with the memory. Defaults to the system\'s '
        "directory for temporary files. It is not saved with the adapter, which may be read elsewhere.",
        each_process=True,
    )
    spread_chunks: bool = _decoding(
        False,
        FLAG,
        "Whether the processes of torch.distributed share the chunks of a memory: each holds and reads some of them, "
        "only candidates are exchanged, and all give the same result. All must make the same calls, with the same "
        "seed where tokens are sampled. Not in training.",
        each_process=True,
    )
    loss: Literal["sum", "draw"] = _loss(
        "sum",
        one_of("sum", "draw"),
        '"sum": continuation plus repetition loss (the paper\'s equation 7). "draw": one of the two for each sample, '
        "by lot, with their weights as odds (the released code).",
    )
    continuation_weight: float = _loss(1.0, WEIGHT, "Weight of the continuation loss.")
    repetition_weight: float = _loss(1.0, WEIGHT, "Weight of the repetition loss.")
    distill_weight: float = _loss(
        0.0,
        SHARE,
        "λ in (1 − λ)·cross-entropy + λ·KL(base model ‖ adapter), where the base model can read memory and window in "
        "full.",
    )
    label_size: int = _loss(32, SIZE, "Consecutive label tokens of a span, for each of the two losses.")
    train_local_size: int | None = _loss(
        None,
        SIZE_OR_NONE,
        "The longest local window before the labels that training draws. In use, a window holds up to `local_size` + "
        "`chunk_size` - 1 tokens before its oldest become a chunk, and candidates do harm behind windows longer than "
        "any that training showed. Defaults to `local_size` (the paper's).",
    )
    train_min_chunk_size: int | None = _loss(
        None,
        SIZE_OR_NONE,
        "The smallest chunk size that training draws; the largest is `chunk_size`. Defaults to 64 (the paper's).",
    )

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
        if isinstance(self.target_modules, (set, frozenset, tuple)):
            self.target_modules = sorted(self.target_modules)
        if self.target_modules is not None:
            check_target_modules(self.target_modules)
        for option in declared_fields(self):
            must, value = option.metadata["must"], getattr(self, option.name)
            if must is not None and not must.holds(value):
                raise ValueError(f"`{option.name}` must be {must.words}, got {value!r}.")
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
        if self.alpha is not None and self.r is None:
            raise ValueError(
                f"`alpha` is {self.alpha} but `r` is None; full twins have no scale. Give `r`, or leave `alpha` out."
            )
        if self.read_chunks is not None:
            for name, value, default in (
                ("decoding", self.decoding, "streaming"),
                ("refresh_interval", self.refresh_interval, 1),
                ("top_chunks", self.top_chunks, None),
            ):
                if value != default:
                    raise ValueError(
                        f"`{name}` is {value!r} and `read_chunks` is {self.read_chunks}, but where the frozen model "
                        f"reads chunks in full, no candidates are renewed for new tokens; leave `{name}` at "
                        f"{default!r}, or `read_chunks` out."
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


OPTIONS = declared_fields(FocusConfig)
# The options that `generate`, `encode` and `forward` take for one call
INFERENCE_FIELDS = tuple(option.name for option in OPTIONS if option.metadata["per_call"])
# What may change between training and reading: these, and the size of the chunks
READING_FIELDS = tuple(option.name for option in OPTIONS if option.metadata["group"] in (WINDOWS, DECODING))
# How tokens are decoded, as far as processes that share chunks must agree in it
SHARED_FIELDS = tuple(
    option.name for option in OPTIONS if option.metadata["group"] == DECODING and not option.metadata["each_process"]
)

FocusConfig.__doc__ = (FocusConfig.__doc__ or "").replace(
    "\n    Raises:", describe(FocusConfig) + "\n\n    Raises:", 1
)
