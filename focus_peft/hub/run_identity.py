"""What a run is: stored with everything that it leaves, and compared here with the run that takes it up."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..saving import write_whole


# Beside the weights, in a checkpoint and in the output folder
IDENTITY_FILE = "run.json"
# Said of the parts of an identity
PARTS = {
    "arguments": "the training arguments",
    "adapter": "the adapter's configuration",
    "base_model": "the base model",
    "data": "the training data",
}


@dataclass(frozen=True)
class RunIdentity:
    """What the weights of a checkpoint depend on, as values of JSON by name.

    Attributes:
        arguments (`dict`): The training arguments that decide the course of the run.
        adapter (`dict`): The adapter's configuration, as far as training uses it.
        base_model (`dict`): The base model's fingerprint.
        data (`dict`): How many documents there are, and a digest of some of them.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    base_model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | os.PathLike) -> None:
        """Write it beside weights."""
        write_whole(Path(folder, IDENTITY_FILE), json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    @classmethod
    def of(cls, folder: str | os.PathLike) -> RunIdentity | None:
        """That of the run that left a folder. None: nothing says what it was.

        Raises:
            ValueError: if the file is damaged.
        """
        file = Path(folder, IDENTITY_FILE)
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return cls(**{part.name: dict(values[part.name]) for part in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"The run's identity {str(file)!r} cannot be read: {error!r}.") from error

    def differences(self, other: RunIdentity) -> list[str]:
        """Where another run differs from this one, in words; empty if it is the same."""
        found = []
        mine, theirs = _plain(asdict(self)), _plain(asdict(other))
        for part, words in PARTS.items():
            for name in sorted(mine[part].keys() | theirs[part].keys()):
                before, now = (_named(run[part], name) for run in (theirs, mine))
                if not same_value(before, now):
                    found.append(f"`{name}` of {words} was {before}, and is {now}")
        return found

    def check(self, folder: str | os.PathLike) -> bool:
        """Compare this run with the one that left a checkpoint.

        Returns:
            `bool`: whether the checkpoint says what it is of.

        Raises:
            ValueError: if it is another run; the message names the differences.
        """
        other = RunIdentity.of(folder)
        if other is None:
            return False
        if found := self.differences(other):
            raise ValueError(
                f"The checkpoint {str(folder)!r} is of another run: {'; '.join(found)}. Set it back to go on, or "
                "start anew: with another `output_dir`, or without resuming (`run.resume=false` of a recipe), which "
                "sets the old checkpoints aside."
            )
        return True


def same_value(one: Any, other: Any) -> bool:
    """Whether two values of JSON say the same: 1 and 1.0, and a number and its text, do."""
    return one == other or str(one).lower() == str(other).lower() or _number(one) == _number(other)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _named(part: dict[str, Any], name: str) -> Any:
    return part.get(name, "nothing")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As they come back from a file: tuples as lists, keys as texts."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
