"""Objects that stand in the place of a module's `forward`, from the injection of an adapter until it is unloaded."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


class Interceptor:
    """Stands before a module's `forward` and lets every call through. A subclass says what else happens.

    An object and no function, so that a copy of the module has a copy of it, which calls the copy.

    Args:
        module (`nn.Module`): The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.previous = module.__dict__.get("forward")  # a hook of somebody else's, such as accelerate's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.original(*args, **kwargs)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` is without this."""
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        # transformers' loops look at the signature of `forward`
        bound = type(self.module).forward.__get__(self.module) if self.previous is None else self.previous
        return inspect.signature(bound)


def intercept(module: nn.Module, kind: type[Interceptor]) -> None:
    """Put an interceptor before a module's `forward`, unless there is one."""
    if not isinstance(module.__dict__.get("forward"), kind):
        module.forward = kind(module)


def release(module: nn.Module) -> None:
    """Undo `intercept`."""
    there = module.__dict__.get("forward")
    if isinstance(there, Interceptor):
        del module.forward
        if there.previous is not None:
            module.forward = there.previous
