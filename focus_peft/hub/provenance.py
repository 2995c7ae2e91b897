"""How an adapter was made: the recipe of its run and the state that the run left behind. No pickle is opened."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..adapter_file import WEIGHTS_FILE
from ..config import INFERENCE_FIELDS, FocusConfig
from .run_folder import RECIPE_FILE, STATE_FILE, checkpoints
from .run_identity import RunIdentity, same_value
from .weights import same_bytes


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]")
# Of a source of data
DATASET_ENTRIES = {"name", "split", "revision", "streaming"}
# A token of the Hub, and the entries of a recipe that may hold a secret
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
SECRET_ENTRY = re.compile(r"token|hub_token|(.*_)?(password|secret|api_key)")
# Such an entry without a value
NOTHING = ("", "null", "~", "None", "none")
# Words that are switches in YAML 1.1, and in a recipe where a switch belongs
SWITCHES = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True)
class Provenance:
    """What is known of an adapter's training.

    Attributes:
        recipe (`dict`, *optional*): The sections of the recipe. Every value is the text that stands in the file.
        recipe_file (`Path`, *optional*): Where it was read.
        step (`int`, *optional*): The step that the weights were saved at.
        state (`dict`): What `trainer_state.json` of that step says; empty if there is none.
        identity (`RunIdentity`, *optional*): What the run was, as it was stored with the weights.
    """

    recipe: dict[str, Any] | None = None
    recipe_file: Path | None = None
    step: int | None = None
    state: dict[str, Any] = field(default_factory=dict)
    identity: RunIdentity | None = None

    @classmethod
    def of(cls, adapter: str | os.PathLike, recipe_file: str | os.PathLike | None = None) -> Provenance:
        """What the folder of an adapter says: a checkpoint, or the output folder of a run.

        In an output folder, the state is that of the checkpoint that holds the very same weights: a run may end with
        its best checkpoint rather than its last.

        Args:
            adapter (`str`): The folder.
            recipe_file (`str`, *optional*): The recipe. Defaults to `recipe.yaml` in the folder or, for a checkpoint,
                above it.

        Raises:
            ValueError: if a file is damaged, or the recipe holds a secret.
        """
        folder = Path(adapter)
        if recipe_file is None:
            folders = [folder, folder.parent] if (folder / STATE_FILE).is_file() else [folder]
            recipe_file = next((place / RECIPE_FILE for place in folders if (place / RECIPE_FILE).is_file()), None)
        recipe = None if recipe_file is None else read_recipe(recipe_file)
        state: dict[str, Any] = {}
        holder = _holder(folder)
        if holder is not None:
            try:
                state = json.loads((holder / STATE_FILE).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                file = str(holder / STATE_FILE)
                raise ValueError(f"The training state {file!r} cannot be read: {error}.") from error
        return cls(
            recipe,
            None if recipe_file is None else Path(recipe_file),
            state.get("global_step"),
            state,
            RunIdentity.of(folder),
        )

    def check(self, config: FocusConfig) -> None:
        """Raise a ValueError if the recipe is that of another adapter, or of a run of another length."""
        recipe = {name: text for name, text in self.section("focus").items() if name not in INFERENCE_FIELDS}
        pairs = [(f"focus.{name}", text, getattr(config, name, None)) for name, text in recipe.items()]
        steps = self.section("training").get("max_steps")
        if steps not in (None, "-1") and self.state.get("max_steps"):
            pairs.append(("training.max_steps", steps, self.state["max_steps"]))
        known = {} if self.identity is None else self.identity.arguments
        told = {name: text for name, text in self.section("training").items() if isinstance(text, str)}
        pairs += [(f"training.{name}", told[name], known[name]) for name in told.keys() & known.keys()]
        for name, text, value in pairs:
            if not _equal(text, value):
                raise ValueError(
                    f"The recipe `config` {str(self.recipe_file)!r} says `{name}` is {text}, but the adapter was "
                    f"trained with {value}; give the recipe of this adapter, with the values that were given on the "
                    "command line in it."
                )

    def section(self, name: str) -> dict[str, Any]:
        """A section of the recipe; empty if there is none."""
        return ((self.recipe or {}).get(name)) or {}

    def sources(self) -> list[dict[str, str]]:
        """The sources of the data."""
        return [source for source in self.section("data").get("sources") or [] if isinstance(source, dict)]

    def hub_datasets(self) -> list[str]:
        """The sources that are datasets on the Hub for certain: named like one, and with what only a dataset has."""
        sources = [source for source in self.sources() if DATASET_ENTRIES & source.keys()]
        paths = [str(source.get("path", "")) for source in sources]
        return list(dict.fromkeys(path for path in paths if HUB_NAME.fullmatch(path) and not Path(path).exists()))

    def evaluation(self) -> dict[str, float]:
        """The last evaluation of the run up to these weights, without the prefix `eval_`; empty if there was none."""
        rows = [row for row in self.state.get("log_history", []) if "eval_loss" in row]
        rows = [row for row in rows if self.step is None or row.get("step", 0) <= self.step]
        return {name.removeprefix("eval_"): value for name, value in rows[-1].items()} if rows else {}


def _equal(text: Any, value: Any) -> bool:
    """Whether a value is what a recipe's text says."""
    if isinstance(text, list):
        return isinstance(value, list) and sorted(text) == sorted(map(str, value))
    if isinstance(value, bool):
        text = SWITCHES.get(str(text).lower(), text)
    return text in NOTHING if value is None else same_value(text, value)


def read_recipe(file: str | os.PathLike) -> dict[str, Any]:
    """The sections of a recipe, every value as the text that stands in the file.

    Raises:
        ValueError: if it is no YAML file with sections, or holds a secret.
    """
    where = f"The recipe `config` {str(file)!r}"
    try:
        text = Path(file).read_text(encoding="utf-8")
        values = yaml.load(text, Loader=yaml.BaseLoader)  # makes nothing but texts, lists and mappings
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{where} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not YAML with sections such as `data` and `training`.")
    secret = SECRET.search(text) is not None or any(
        SECRET_ENTRY.fullmatch(path.rpartition(".")[2]) and value not in NOTHING for path, value in _entries(values)
    )
    if secret:
        raise ValueError(f"{where} seems to hold a secret, such as a token; take it out before it is published.")
    return values


def _entries(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _entries(value, f"{path}.{name}")
    elif isinstance(values, list):
        for value in values:
            yield from _entries(value, path)
    else:
        yield path, str(values)


def _holder(folder: Path) -> Path | None:
    """The folder whose training state is that of the adapter's weights."""
    if (folder / STATE_FILE).is_file():
        return folder
    weights = folder / WEIGHTS_FILE
    for checkpoint in reversed(checkpoints(folder)):
        files = (weights, checkpoint / WEIGHTS_FILE)
        if all(file.is_file() for file in files) and same_bytes(*files):
            return checkpoint
    return None
