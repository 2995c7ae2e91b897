"""What transformers calls the keys and values of a model, in arguments and in outputs: `cache` since 5.24,
`past_key_values` before.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast


OLDER = "past_key_values"
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else OLDER


def rename(arguments: dict[str, Any]) -> None:
    """Give what a caller calls by its older name the one that the installed transformers has, as transformers itself
    does.

    Raises:
        ValueError: if both names are given.
    """
    if CACHE == OLDER or OLDER not in arguments:
        return
    if arguments.get(CACHE) is not None:
        raise ValueError(f"`{CACHE}` and `{OLDER}` are two names of one argument; leave out `{OLDER}`.")
    arguments[CACHE] = arguments.pop(OLDER)
