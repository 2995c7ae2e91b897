"""The measurements: which ways each one compares, and the ratios that it reports."""

from __future__ import annotations

from typing import Any


# The ways of each measurement: what one process runs, a function in a module beside this one, and with which options
WAYS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "prefill": {
        "focus": ("reading.focus", {"decoding": "streaming"}),
        "floor": ("reading.reading_floor", {}),
        "full attention": ("reading.full_attention", {}),
    },
    "decode": {
        "streaming": ("reading.focus", {"decoding": "streaming"}),
        "streaming, compiled": ("reading.focus", {"decoding": "streaming", "compiled": True}),
        "floor of streaming": ("reading.step_floor", {"decoding": "streaming"}),
        "exact": ("reading.focus", {"decoding": "exact"}),
        "floor of exact": ("reading.step_floor", {"decoding": "exact"}),
    },
    "training": {
        "naive streaming": ("training.step", {"decoding": "streaming", "labels": 32, "naive": True}),
        "streaming": ("training.step", {"decoding": "streaming", "labels": 32, "naive": False}),
        "naive exact": ("training.step", {"decoding": "exact", "labels": 32, "naive": True}),
        "exact": ("training.step", {"decoding": "exact", "labels": 32, "naive": False}),
        "naive, one label": ("training.step", {"decoding": "exact", "labels": 1, "naive": True}),
    },
    "memory": {
        storage: ("reading.focus", {"decoding": "streaming", "storage": storage})
        for storage in ("device", "int8", "disk")
    },
    "ranks": {
        "1 process": ("ranks.focus_of_processes", {"decoding": "streaming", "processes": 1}),
        "2 processes": ("ranks.focus_of_processes", {"decoding": "streaming", "processes": 2}),
    },
    "host": {"streaming": ("in_turn.host", {})},
    "token": {"streaming": ("in_turn.token", {})},
    "scaling": {
        "focus": ("reading.focus", {"decoding": "streaming"}),
        "one by one": ("reading.focus", {"decoding": "streaming", "chunk_batch_size": 1}),
        "full attention": ("reading.full_attention", {}),
    },
}
# (measure, of this way, over that way)
RATIOS: dict[str, list[tuple[str, str, str]]] = {
    "prefill": [("prefill_seconds", "focus", "floor"), ("prefill_seconds", "full attention", "focus")],
    "decode": [
        ("seconds_per_token", "streaming", "floor of streaming"),
        ("seconds_per_token", "exact", "floor of exact"),
        ("seconds_per_token", "exact", "streaming"),
        ("seconds_per_token", "streaming", "streaming, compiled"),
    ],
    "training": [
        (measure, f"naive {scheme}", scheme)
        for scheme in ("streaming", "exact")
        for measure in ("seconds", "peak_memory_gb", "memory_of_the_step_gb")
    ]
    + [("labels_per_second", "streaming", "naive, one label")],
    "memory": [
        (measure, storage, "device")
        for storage in ("int8", "disk")
        for measure in ("peak_memory_gb", "prefill_seconds", "seconds_per_token")
    ],
    "ranks": [
        ("prefill_seconds", "1 process", "2 processes"),
        ("seconds_per_token", "1 process", "2 processes"),
        ("peak_memory_gb", "1 process", "2 processes"),
    ],
    "host": [],
    "token": [],
    "scaling": [],
}
