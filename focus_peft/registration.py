"""Registers FocusLLM with PEFT, which has no plug-in mechanism: an entry in its registry. (See `peft_type` too.)"""

from __future__ import annotations

import warnings

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from .config import FocusConfig
from .hub.card import complete_card
from .model import FocusModel
from .peft_type import FOCUS, NAME


def register() -> None:
    """Make `FocusConfig` and `FocusModel` known to PEFT. May be called any number of times."""
    FocusConfig.complete_card = complete_card
    # PEFT asks transformers for it by its old name whenever it wraps a model, which no user can help
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    if FOCUS not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=FocusConfig, model_cls=FocusModel)
