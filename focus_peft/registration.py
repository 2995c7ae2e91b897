"""Registers FocusLLM with PEFT, which has no plug-in mechanism: a new member of its `PeftType`, then its own registry."""

from __future__ import annotations

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from .config import FocusConfig
from .hub.pushing import pushes_card
from .hub.saving import saves_whole
from .model import FocusModel
from .peft_type import FOCUS, NAME


def register() -> None:
    """Make `FocusConfig` and `FocusModel` known to PEFT. May be called any number of times."""
    if not hasattr(PeftModel.save_pretrained, "saves_whole"):
        PeftModel.save_pretrained = saves_whole(PeftModel.save_pretrained, FOCUS)  # type: ignore[method-assign]
    if not hasattr(PeftModel.push_to_hub, "pushes_card"):
        PeftModel.push_to_hub = pushes_card(PeftModel.push_to_hub, FOCUS)  # type: ignore[method-assign]
    if FOCUS not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=FocusConfig, model_cls=FocusModel)
