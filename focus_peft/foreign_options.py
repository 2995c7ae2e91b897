"""Options of PEFT's other methods that a focus adapter has not, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


_TWINS_ALONE = (
    "a focus adapter trains twins of projections, and every other weight stays as it was published; train those "
    "before, and give what `merge_and_unload()` returns to `get_peft_model`"
)
_ONE_RANK = "all twins of an adapter have one `r` and one `alpha`; leave it out"
FOREIGN: dict[str, str] = {
    "modules_to_save": _TWINS_ALONE,
    "trainable_token_indices": _TWINS_ALONE,
    "target_parameters": _TWINS_ALONE,
    "bias": "a full twin has the bias of its projection, and a low-rank one none; leave it out",
    "lora_alpha": "it is `alpha` here",
    "lora_dropout": "candidates are read without dropout; leave it out",
    "use_rslora": "give the `alpha` that you want: a delta is scaled by `alpha / r`",
    "use_dora": "a twin is full (`r=None`) or low-rank; leave it out",
    "init_lora_weights": "twins start as the frozen projections; leave it out",
    "rank_pattern": _ONE_RANK,
    "alpha_pattern": _ONE_RANK,
    "layers_pattern": "layers are found by the first number in a module's path; leave it out",
    "layer_replication": "the frozen model stays as it is; replicate its layers before",
}


def refuse_foreign(given: Mapping[str, Any]) -> None:
    """Raise a TypeError, as for any unknown argument, for one that another method of PEFT has."""
    for name, value in given.items():
        if name in FOREIGN and value is not None:
            raise TypeError(f"{why_not(name)}; got {value!r}.")


def why_not(name: str) -> str:
    """Why a focus adapter has no such option, without a full stop."""
    return f"`{name}` is no option of `FocusConfig`: {FOREIGN[name]}"
