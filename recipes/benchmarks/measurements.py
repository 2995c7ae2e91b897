"""The measurements: which ways each one compares, and the ratios that it reports."""

from __future__ import annotations

from typing import Any


# What one process runs: a module beside this one, and a function in it
RUNS = {
    "focus": "reading.focus",
    "processes": "ranks.focus_of_processes",
    "full": "reading.full_attention",
    "reading floor": "reading.reading_floor",
    "step floor": "reading.step_floor",
    "training": "training.step",
    "host": "in_turn.host",
    "token": "in_turn.token",
}
# The ways of each measurement: what runs, and with which options
WAYS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "prefill": {
        "focus": ("focus", {"decoding": "streaming"}),
        "floor": ("reading floor", {}),
        "full attention": ("full", {}),
    },
    "decode": {
        "streaming": ("focus", {"decoding": "streaming"}),
        "streaming, compiled": ("focus", {"decoding": "streaming", "compiled": True}),
        "floor of streaming": ("step floor", {"decoding": "streaming"}),
        "exact": ("focus", {"decoding": "exact"}),
        "floor of exact": ("step floor", {"decoding": "exact"}),
    },
    "training": {
        "naive streaming": ("training", {"decoding": "streaming", "labels": 32, "naive": True}),
        "streaming": ("training", {"decoding": "streaming", "labels": 32, "naive": False}),
        "naive exact": ("training", {"decoding": "exact", "labels": 32, "naive": True}),
        "exact": ("training", {"decoding": "exact", "labels": 32, "naive": False}),
        "naive, one label": ("training", {"decoding": "exact", "labels": 1, "naive": True}),
    },
    "memory": {
        storage: ("focus", {"decoding": "streaming", "storage": storage}) for storage in ("device", "int8", "disk")
    },
    "ranks": {
        "1 process": ("processes", {"decoding": "streaming", "processes": 1}),
        "2 processes": ("processes", {"decoding": "streaming", "processes": 2}),
    },
    "host": {"streaming": ("host", {})},
    "token": {"streaming": ("token", {})},
    "scaling": {
        "focus": ("focus", {"decoding": "streaming"}),
        "one by one": ("focus", {"decoding": "streaming", "chunk_batch_size": 1}),
        "full attention": ("full", {}),
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
