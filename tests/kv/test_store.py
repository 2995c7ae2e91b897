"""Stores that grow, also where there was no room the first time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from focus_peft.kv.disk import DiskStore
from focus_peft.kv.store import KeyValueStore


@pytest.mark.parametrize("kind", [KeyValueStore, DiskStore])
def test_a_store_that_had_no_room_for_all_layers_grows_the_next_time(
    kind: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = kind(2, 4, tmp_path) if kind is DiskStore else kind(2, 4)
    states = torch.arange(64.0).view(2, 1, 4, 8)
    for layer in range(2):
        store.store_chunks(layer, slice(0, 2), (states + layer, states - layer), [4, 4])
    allocate, full = store._allocate, store.layers[1]

    def one_layer(like: Any, *size: int) -> Any:
        if like is full:
            raise OSError("no room")
        return allocate(like, *size)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_allocate", one_layer)
        with pytest.raises(OSError, match="no room"):
            store.reserve(3, 8)
    for rows, columns in ((2, 6), (3, 12)):
        store.reserve(rows, columns)
        for layer in range(2):
            keys, values = store.read(layer, slice(0, 2), 4)
            assert torch.equal(keys, states + layer) and torch.equal(values, states - layer)
