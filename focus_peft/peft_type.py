"""The member `FOCUS` of PEFT's `PeftType`, which has no plug-in mechanism."""

from __future__ import annotations

from typing import Any

from peft.utils import PeftType


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
