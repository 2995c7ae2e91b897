"""`FocusConfig`: what a focus adapter is made of, and the window sizes that it reads with."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from peft.config import PeftConfig
from peft.utils import TaskType

from .adapter_file import check_adapter_file
from .peft_type import FOCUS


# What is no label
IGNORE = -100


# Fields that only matter at inference: `generate`, `encode` and `forward` take them as keyword arguments too.
INFERENCE_FIELDS = (
    "local_size",
    "prompt_size",
    "add_bos",
    "decoding",
    "refresh_interval",
    "chunk_batch_size",
    "top_chunks",
    "storage",
    "storage_dir",
    "spread_chunks",
)
# Where the keys and values of chunks may be
STORAGES = ("device", "cpu", "int8", "disk")


@dataclass
class FocusConfig(PeftConfig):
    """
    Configuration of a focus adapter (FocusLLM, arXiv 2408.11745).

    Sizes are in tokens. `chunk_size`, `local_size` and `prompt_size` are derived from the base model where they are None
    (see `WindowSizes.for_model`), so `FocusConfig()` works on every supported model.

    Parameters that control the adapter:
        target_modules (`list[str]` or `str`, *optional*):
            The projections that get a twin: names (matched at the end of the module's path) or, as a string, a regular
            expression for the whole path. Default: q, k, v and o of every attention module, fused ones included, found
            by structure.
        r (`int`, *optional*):
            None: each twin is a full trainable copy of its projection (the paper's). An integer: the twin is the frozen
            projection plus a low-rank delta of rank `r` that starts at zero.
        alpha (`float`, *optional*): The delta is scaled by `alpha / r`. Default: `2 * r`. Only with `r`.

    Parameters that control the windows:
        chunk_size (`int`, *optional*): Tokens in a chunk of the memory, c. Default: min(2048, max positions / 4).
        local_size (`int`, *optional*): Tokens in the local window, L. Default: min(2048, max positions / 4).
        prompt_size (`int`, *optional*):
            Tokens at the end of the local window that are appended to every chunk as the dynamic prompt, P.
            Default: min(512, `chunk_size`, `local_size`), the paper's.
        add_bos (`bool`): Put the model's BOS, if it has one, before the dynamic prompt and before the local window,
            unless they already start with it. Nothing is added where there is no memory.

    Parameters that control decoding:
        decoding (`"streaming"` or `"exact"`):
            "exact" (the paper's): the local window is recomputed under new candidates for every token. "streaming":
            local keys and values are cached, and only the newest token sees its candidates. In training it chooses the
            label scheme likewise: "streaming" gives every label its own candidates, "exact" one set to a block of labels.
        refresh_interval (`int`): Candidates are renewed every so many generated tokens. Default: 1, at every token.
        chunk_batch_size (`int`, *optional*):
            How many chunks are read at once. Results do not depend on it. Default: as many as fit a token budget.
        top_chunks (`int`, *optional*):
            Of the chunks, only so many are renewed: those whose candidates the token looked at most that came first after the
            input, or after the window grew into the memory. The others keep their last candidate. Default: all are renewed.
        storage (`"device"`, `"cpu"`, `"int8"` or `"disk"`):
            Where keys and values of chunks are kept: on the model's device; in CPU memory; on the device in 8 bits, with a
            scale for each token and head, which changes results a little; or in files that are mapped into memory. In
            training they are on the device.
        storage_dir (`str`, *optional*):
            Where the files of `storage="disk"` are made; they vanish with the memory. Default: the system's directory for
            temporary files.
        spread_chunks (`bool`):
            Whether the processes of torch.distributed share the chunks of a memory: each holds and reads some of them, only
            candidates are exchanged, and all give the same result. All must make the same calls, with the same seed where tokens
            are sampled. Not in training. Default: every process reads on its own.

    Parameters that control the training loss:
        loss (`"sum"` or `"draw"`):
            "sum": continuation plus repetition loss (the paper's equation 7). "draw": one of the two for each sample, by
            lot, with odds as their weights (the released code).
        continuation_weight, repetition_weight (`float`): Weights of the two losses. Default: 1.
        distill_weight (`float`): λ in (1 − λ)·cross-entropy + λ·KL(base model reading everything ‖ adapter). Default: 0.
        label_size (`int`): Consecutive label tokens of a span, for each of the two losses. Default: 32.
        train_local_size (`int`, *optional*):
            The longest local window before the labels that training draws. A window holds up to `local_size` +
            `chunk_size` - 1 tokens before its oldest become a chunk, and candidates do harm behind windows longer than
            any that training showed. Default: `local_size` (the paper's).
        train_min_chunk_size (`int`, *optional*):
            The smallest chunk size that training draws; the largest is `chunk_size`. Default: 64 (the paper's).

    Raises:
        ValueError: if a field has a value that cannot work; the message names the field, the value and the remedy.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Projections that get a twin: names or a regex. None: q, k, v, o found by structure."},
    )
    r: int | None = field(
        default=None, metadata={"help": "None: full twins. An integer: low-rank twins of that rank."}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "Low-rank deltas are scaled by alpha / r. None: 2 * r."}
    )
    chunk_size: int | None = field(default=None, metadata={"help": "Tokens in a chunk of the memory."})
    local_size: int | None = field(default=None, metadata={"help": "Tokens in the local window."})
    prompt_size: int | None = field(default=None, metadata={"help": "Tokens in the dynamic prompt."})
    add_bos: bool = field(default=True, metadata={"help": "BOS before the dynamic prompt and the local window."})
    decoding: Literal["streaming", "exact"] = field(default="streaming", metadata={"help": "'streaming' or 'exact'."})
    refresh_interval: int = field(default=1, metadata={"help": "Renew the candidates every so many tokens."})
    chunk_batch_size: int | None = field(default=None, metadata={"help": "Chunks read at once. None: a token budget."})
    top_chunks: int | None = field(
        default=None, metadata={"help": "Renew the candidates of the most looked-at chunks only. None: of all."}
    )
    storage: Literal["device", "cpu", "int8", "disk"] = field(
        default="device", metadata={"help": "Where chunks are kept: 'device', 'cpu', 'int8' or 'disk'."}
    )
    storage_dir: str | None = field(default=None, metadata={"help": "Where storage='disk' makes its files."})
    spread_chunks: bool = field(
        default=False, metadata={"help": "The processes of torch.distributed share the chunks of a memory."}
    )
    loss: Literal["sum", "draw"] = field(default="sum", metadata={"help": "'sum' of both losses or 'draw' of one."})
    continuation_weight: float = field(default=1.0, metadata={"help": "Weight of the continuation loss."})
    repetition_weight: float = field(default=1.0, metadata={"help": "Weight of the repetition loss."})
    distill_weight: float = field(default=0.0, metadata={"help": "Weight of the distillation term, from 0 to 1."})
    label_size: int = field(default=32, metadata={"help": "Consecutive label tokens of a span."})
    train_local_size: int | None = field(
        default=None, metadata={"help": "Longest local window that training draws. None: `local_size`."}
    )
    train_min_chunk_size: int | None = field(
        default=None, metadata={"help": "Smallest chunk size that training draws. None: 64."}
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
            _check_target_modules(self.target_modules)

        sizes = ("chunk_size", "local_size", "prompt_size", "train_local_size", "train_min_chunk_size")
        for name in ("r", *sizes, "chunk_batch_size", "top_chunks"):
            value = getattr(self, name)
            if value is not None:
                _check_positive_int(name, value, "a positive integer or None")
        for name in ("refresh_interval", "label_size"):
            _check_positive_int(name, getattr(self, name), "a positive integer")
        if self.prompt_size is not None and self.local_size is not None and self.prompt_size > self.local_size:
            raise ValueError(
                f"`prompt_size` ({self.prompt_size}) is larger than `local_size` ({self.local_size}), but the dynamic "
                "prompt is the end of the local window; choose a smaller `prompt_size`."
            )
        if self.chunk_size is not None and (self.train_min_chunk_size or 0) > self.chunk_size:
            raise ValueError(
                f"`train_min_chunk_size` ({self.train_min_chunk_size}) is larger than `chunk_size` ({self.chunk_size}), the "
                "largest that training draws; choose a smaller one."
            )
        if self.alpha is not None:
            if self.r is None:
                raise ValueError(
                    f"`alpha` is {self.alpha} but `r` is None; full twins have no scale. Give `r`, or leave `alpha` out."
                )
            if not is_number(self.alpha) or not 0 < self.alpha < float("inf"):
                raise ValueError(
                    f"`alpha` must be a finite number above 0, got {self.alpha!r}; leave it out for 2 * r."
                )
        _check_choice("decoding", self.decoding, ("streaming", "exact"))
        _check_choice("loss", self.loss, ("sum", "draw"))
        _check_choice("storage", self.storage, STORAGES)
        if self.storage_dir is not None:
            if not isinstance(self.storage_dir, (str, os.PathLike)) or not str(self.storage_dir):
                raise ValueError(f"`storage_dir` must be the path of a directory or None, got {self.storage_dir!r}.")
            if self.storage != "disk":
                raise ValueError(
                    f"`storage_dir` is {str(self.storage_dir)!r} but `storage` is {self.storage!r}, which makes no files; choose "
                    '`storage="disk"`, or leave `storage_dir` out.'
                )
            self.storage_dir = os.fspath(self.storage_dir)
        for name in ("add_bos", "spread_chunks"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        for name in ("continuation_weight", "repetition_weight"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be a finite number, 0 or above, got {value!r}.")
        if self.continuation_weight + self.repetition_weight == 0:
            raise ValueError("`continuation_weight` and `repetition_weight` are both 0; at least one must be above 0.")
        if not is_number(self.distill_weight) or not 0 <= self.distill_weight <= 1:
            raise ValueError(f"`distill_weight` must be a number from 0 to 1, got {self.distill_weight!r}.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> FocusConfig:  # type: ignore[override]
        """Load a configuration, as `PeftConfig.from_pretrained`. A damaged adapter file beside it is refused at once.

        Raises:
            ValueError: if the adapter file in a local folder is damaged.
        """
        subfolder = kwargs.get("subfolder") or ""
        check_adapter_file(os.path.join(pretrained_model_name_or_path, subfolder))
        return super().from_pretrained(os.fspath(pretrained_model_name_or_path), **kwargs)

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


def is_number(value: Any) -> bool:
    """Whether a field's value is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_target_modules(value: Any) -> None:
    if not isinstance(value, (str, list)) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"`target_modules` must be a list of names or a regular expression, got {value!r}.")
    if not value or "" in list(value):
        raise ValueError(
            f"`target_modules` is empty or has an empty name ({value!r}); name at least one projection, or leave it out for "
            "q, k, v and o."
        )
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"`target_modules` is {value!r}, which is no regular expression: {error}.") from error


def _check_positive_int(name: str, value: Any, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be {expected}, got {value!r}.")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
