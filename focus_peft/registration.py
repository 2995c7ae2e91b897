"""Registers FocusLLM with PEFT, which has no plug-in mechanism: a new member of its `PeftType`, then its own registry."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

from .saving import saves_whole


NAME = "FOCUS"


def _add_peft_type(name: str) -> PeftType:
    """Add a real member to the str-Enum `PeftType` (a plain string breaks code that reads `peft_type.value`)."""
    if name in PeftType.__members__:
        return PeftType[name]
    member: Any = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    # `EnumMeta.__setattr__` guards member names, but this one is new
    type.__setattr__(PeftType, name, member)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    hashable = getattr(PeftType, "_hashable_values_", None)  # Python 3.13
    if hashable is not None:
        hashable.append(name)
    return member


FOCUS = _add_peft_type(NAME)


def register() -> None:
    """Make `FocusConfig` and `FocusModel` known to PEFT. May be called any number of times."""
    from .config import FocusConfig
    from .model import FocusModel
    from .pushing import pushes_card

    if not hasattr(PeftModel.save_pretrained, "saves_whole"):
        PeftModel.save_pretrained = saves_whole(PeftModel.save_pretrained, FOCUS)  # type: ignore[method-assign]
    if not hasattr(PeftModel.push_to_hub, "pushes_card"):
        PeftModel.push_to_hub = pushes_card(PeftModel.push_to_hub, FOCUS)  # type: ignore[method-assign]
    if FOCUS not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=FocusConfig, model_cls=FocusModel)
