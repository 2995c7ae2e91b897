"""Other adapters of PEFT on the same model: beneath the twins they are part of the frozen model, above them they are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .config import FocusConfig
from .layer import TwinLayer


class FocusConfigs(dict[str, PeftConfig]):
    """The configurations of a model's focus adapters by name. PEFT asks a model for its `peft_config`, whatever is put
    on it, and writes the new configuration there before it touches a layer: so here others are refused.
    """

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        if not isinstance(config, FocusConfig):
            raise ValueError(
                f"`peft_config` is a {type(config).__name__}, but the model has a focus adapter, and no other tuner "
                "can be put above its twins; put the other adapter on the base model first and give what "
                "`get_base_model()` or `merge_and_unload()` returns to `get_peft_model(…, FocusConfig(…))`."
            )
        super().__setitem__(name, config)

    def update(self, other: Mapping[str, PeftConfig]) -> None:  # type: ignore[override]
        for name, config in other.items():
            self[name] = config


def is_foreign(configs: Any) -> bool:
    """Whether a model's `peft_config` is that of another tuner beneath."""
    return isinstance(configs, dict) and not isinstance(configs, FocusConfigs)


def check_beneath(model: Any) -> None:
    """Raise a ValueError for a model on which other adapters are that cannot be part of the frozen model."""
    if isinstance(model, PeftModel):
        if isinstance(model.peft_config, FocusConfigs):
            remedy = "it has a focus adapter already; call `model.add_adapter(name, FocusConfig(…))` for another"
        elif model.active_peft_config.is_prompt_learning:
            remedy = "chunks have no room for its virtual tokens; give the model without them"
        else:
            remedy = (
                "give what `model.merge_and_unload()` returns, or `model.get_base_model()`, with its adapter frozen "
                "beneath the twins"
            )
        raise ValueError(f"`model` is a {type(model).__name__}, not a transformers model: {remedy}.")
    for path, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise ValueError(
                f"`model` has another adapter with trained copies of {path!r} (`modules_to_save` or "
                "`trainable_token_indices`), which PEFT would switch and save with the twins; merge them first, with "
                "`merge_and_unload()`."
            )


def check_above(model: nn.Module, twins: Mapping[str, TwinLayer]) -> None:
    """Raise a ValueError if something was put around the twins, or in their place, since they were made."""
    for path, twin in twins.items():
        try:
            found = model.get_submodule(path)
        except AttributeError:
            found = None
        if found is not twin and (isinstance(found, BaseTunerLayer) or twin not in _inside(found)):
            now = "gone" if found is None else f"a {type(found).__module__}.{type(found).__qualname__}"
            raise ValueError(
                f"The twin of {path!r} is {now}: another adapter was added to `model`, or taken off, while it had a "
                "focus adapter. Put other adapters on the base model before `get_peft_model(…, FocusConfig(…))`, and "
                "take them off after `unload()`."
            )


def check_no_virtual_tokens(tuner: nn.Module) -> None:
    """Raise a ValueError if `generate` is called by a model with virtual tokens, which stands around this one: it
    hands them over in a method that it has put in the place of the inner model's, and that `generate` never calls.
    """
    owner = getattr(vars(tuner).get("prepare_inputs_for_generation"), "__self__", None)
    if isinstance(owner, PeftModel) and owner.active_peft_config.is_prompt_learning:
        kind = type(owner.active_peft_config).__name__
        raise ValueError(
            f"The model was given to `get_peft_model` once more, with a {kind}, but chunks have no room for its "
            "virtual tokens; generate with the model that was given."
        )


def _inside(module: nn.Module | None) -> set[nn.Module]:
    return set() if module is None else set(module.modules())
