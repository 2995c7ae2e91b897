"""The adapter's own passes, with twins that are still equal to the frozen projections."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ...layer import TwinLayer
from .adapter import Adapter


# No adapter can be called so: PEFT's names are parts of modules' paths
NOBODY = "no.adapter"


class UntrainedTwins(Adapter):
    """The adapter as it was before training: candidates go through the frozen projections."""

    @contextlib.contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Within the context, no twin of the model is used: the active one is an adapter's that no layer has."""
        layers = [layer for layer in self.model.modules() if isinstance(layer, TwinLayer)]
        before = [layer._active_adapter for layer in layers]
        try:
            for layer in layers:
                layer._active_adapter = NOBODY
            yield
        finally:
            for layer, was in zip(layers, before):
                layer._active_adapter = was
