"""The adapter's own passes, with twins that are still equal to the frozen projections."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ...layer import TwinLayer
from .adapter import Adapter


class UntrainedTwins(Adapter):
    """The adapter as it was before training: candidates go through the frozen projections."""

    @contextlib.contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Within the context, no twin of the model is used."""
        layers = [layer for layer in self.model.modules() if isinstance(layer, TwinLayer)]
        before = [layer._disable_adapters for layer in layers]
        try:
            for layer in layers:
                layer._disable_adapters = True
            yield
        finally:
            for layer, was in zip(layers, before):
                layer._disable_adapters = was
