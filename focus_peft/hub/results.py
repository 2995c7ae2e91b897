"""What an evaluation measured, as a JSON file: a list of numbers, each with all that it takes to measure it again."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..fields import built, is_number
from ..saving import write_whole


# `subject` of a number that was measured with the adapter
ADAPTER = "adapter"
# Settings that a card has columns and cells for: tokens of an input, number of inputs, bounds of the value, its error
LENGTH, SAMPLES, INTERVAL, ERROR = "length", "samples", "95 % interval", "standard error"
PACKAGES = ("torch", "transformers", "peft", "focus_peft")


@dataclass(frozen=True)
class Result:
    """One number.

    Attributes:
        task (`str`): What was asked, for example "passkey".
        dataset (`str`): What it was asked about: a dataset's name on the Hub, or a few words.
        metric (`str`): For example "accuracy" or "perplexity".
        value (`float`): The number, in the metric's own unit.
        settings (`dict`): What the number depends on: length, decoding, samples, seed, ... Values are numbers, words
            or lists. A card puts numbers with different `length` (tokens) side by side.
        command (`str`): The command that measured it.
        machine (`str`): What it was measured on.
        versions (`dict[str, str]`): Versions of packages, by name.
        subject (`str`): What was measured. Defaults to "adapter"; anything else is a baseline, for example "base
            model, local window alone", and is shown beside the adapter's number, but not claimed for it.
        adapter (`str`, *optional*): A digest of the weights that were measured, or measured beside (`weights_digest`).
            The number is then published with these weights only.

    Raises:
        ValueError: if a field has a value that cannot be right; the message names the field and the value.

    Example:

    ```python
    from focus_peft.results import Result, environment, save_results

    command = "python recipes/evaluate.py --config mine.yaml"
    result = Result("passkey", "made-up passkeys", "accuracy", 0.75, {"length": 8192}, command, **environment())
    save_results([result], "passkey.json")
    ```
    """

    task: str
    dataset: str
    metric: str
    value: float
    settings: dict[str, Any]
    command: str
    machine: str
    versions: dict[str, str]
    subject: str = ADAPTER
    adapter: str | None = None

    def __post_init__(self) -> None:
        for name in ("task", "dataset", "metric", "command", "machine", "subject"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"`{name}` of a result must be a text that is not empty, got {text!r}.")
        if not is_number(self.value) or not math.isfinite(self.value):
            raise ValueError(f"`value` of a result must be a finite number, got {self.value!r}.")
        for name in ("settings", "versions"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"`{name}` of a result must be a mapping, got {getattr(self, name)!r}.")


def environment(*packages: str) -> dict[str, Any]:
    """`machine` and `versions` of a result that is measured here; `packages` are those that matter besides ours."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, {python}"
    versions = {}
    for name in (*PACKAGES, *packages):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a clone, without being installed
            continue
    return {"machine": machine, "versions": versions}


def save_results(results: Iterable[Result], file: str | os.PathLike) -> None:
    """Write results as JSON. A file that is there is replaced, when the new one is whole."""
    write_whole(file, to_json(results))


def to_json(results: Iterable[Result]) -> str:
    entries = [asdict(result) for result in results]
    known = [{name: value for name, value in entry.items() if value is not None} for entry in entries]
    return json.dumps(known, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def load_results(file: str | os.PathLike) -> list[Result]:
    """Read a file of results, a list of them or a single one.

    Raises:
        ValueError: if the file is not JSON, or an entry is no result; the message names the file and what is wrong.
    """
    where = f"The file of `results` {str(file)!r}"
    try:
        entries = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}.") from error
    results = []
    for number, values in enumerate(entries if isinstance(entries, list) else [entries], start=1):
        try:
            results.append(built(Result, values, "It"))
        except ValueError as error:
            raise ValueError(f"{where} is wrong in entry {number}: {error}") from error
    return results
