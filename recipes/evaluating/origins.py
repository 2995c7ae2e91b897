"""Where samples come from: the commit and the packages that made them, and the machine."""

from __future__ import annotations

import json
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import peft
import torch
import transformers

import focus_peft
from focus_peft.tasks.methods.pressed_cache import PACKAGE
from focus_peft.trainer.metrics import peak_memory


def versions() -> dict[str, str]:
    """Versions of the packages that results come from."""
    found = {module.__name__: module.__version__ for module in (focus_peft, peft, torch, transformers)}
    return {**found, **({PACKAGE: version(PACKAGE)} if PACKAGE in sys.modules else {})}


def origins(samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many samples each combination of commit and versions has made; older samples do not say which versions."""
    made = ({name: sample.get(name) for name in ("commit", "versions")} for sample in samples)
    counts = Counter(json.dumps(origin, sort_keys=True) for origin in made)
    return [{**json.loads(origin), "samples": count} for origin, count in sorted(counts.items())]


def circumstances(device: torch.device) -> dict[str, Any]:
    """What results of this process depend on besides the configuration."""
    return {
        "versions": versions(),
        "machine": {
            "python": platform.python_version(),
            "processor": f"{platform.system()}, {platform.machine()}",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "threads": torch.get_num_threads(),
        },
        "peak_memory_gb_of_the_last_run": round(peak_memory(device) / 1e9, 2),
    }
