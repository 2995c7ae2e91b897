"""A training recipe: the sections of a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from focus_peft import FocusConfig
from focus_peft.data import DataConfig
from focus_peft.data.files import is_local
from focus_peft.fields import SIZE_OR_NONE
from focus_peft.hub.provenance import SECRET_ENTRY, SWITCHES
from focus_peft.trainer.arguments import FocusTrainingArguments
from lib.base_model import ModelArguments
from lib.yaml_files import build, check_names, expanded, read_yaml


@dataclass
class RunArguments:
    """Everything else.

    Attributes:
        resume (`str` or `bool`): "auto": go on from the last whole checkpoint in `output_dir`, if there is one. False:
            start anew. True, or a checkpoint's folder: from there. Defaults to "auto".
        initial_adapter (`str`, *optional*): A folder or a Hub repository with an adapter, whose twins the first step
            starts from. `focus` must describe twins of the same shape.
        passkey_every (`int`, *optional*): Measure passkey accuracy every so many steps.
        passkey_tokens, passkey_samples (`int`): Length and number of its prompts. Default to 1024 and 10.
        eval_samples (`int`, *optional*): Evaluate on so many of the held-out pieces, evenly spaced. Defaults to all.
        patience (`int`, *optional*): Stop after so many evaluations without a better `metric_for_best_model`.
    """

    resume: str | bool = "auto"
    initial_adapter: str | None = None
    passkey_every: int | None = None
    passkey_tokens: int = 1024
    passkey_samples: int = 10
    eval_samples: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.resume, str):
            self.resume = SWITCHES.get(self.resume.lower(), self.resume)
        for name in ("passkey_every", "passkey_tokens", "passkey_samples", "eval_samples", "patience"):
            SIZE_OR_NONE.check(f"`run.{name}`", getattr(self, name))


SECTIONS: dict[str, type] = {
    "model": ModelArguments,
    "focus": FocusConfig,
    "data": DataConfig,
    "training": FocusTrainingArguments,
    "run": RunArguments,
}


@dataclass
class Recipe:
    """A whole recipe, its sections built. `values` is what it says, overrides included, variables as they are."""

    model: ModelArguments
    focus: FocusConfig
    data: DataConfig
    training: FocusTrainingArguments
    run: RunArguments
    values: dict[str, Any]


def load_recipe(file: str | Path, overrides: Sequence[str] = (), **fixed: Any) -> Recipe:
    """Read a recipe.

    Args:
        file (`str`): The YAML file. `${STDLIB}` in a string is the folder of Python's standard library; other
            variables are the environment's.
        overrides (`Sequence[str]`): As in [`read_yaml`]. A key is a name in one of the sections, or has the section
            before it: `training.learning_rate=1e-4`, `data.sources.0.path=texts/*.md`.
        **fixed: More overrides, by key with `__` in place of dots.

    Raises:
        ValueError: for an unknown section or key, or a value of another type; the message names it.
    """
    values = read_recipe(file, overrides, **fixed)
    said = {name: expanded(values.get(name) or {}) for name in SECTIONS}
    known = [field.name for field in fields(FocusTrainingArguments)]
    if "activation_checkpointing" in said["training"] and "activation_checkpointing" not in known:
        # its name before transformers 5.20 or so
        said["training"]["gradient_checkpointing"] = said["training"].pop("activation_checkpointing")
    recipe = Recipe(**{name: build(kind, said[name], name) for name, kind in SECTIONS.items()}, values=values)
    strategy = str(getattr(recipe.training.eval_strategy, "value", recipe.training.eval_strategy))
    if strategy != "no" and not recipe.data.held_out:
        raise ValueError(
            f"`training.eval_strategy` is {strategy!r}, but `data.held_out` is 0, so there is nothing to evaluate on; "
            "hold documents out, or set it to 'no'."
        )
    if recipe.training.push_to_hub and recipe.training.hub_model_id is None:
        raise ValueError(
            "`training.push_to_hub` is True, but `training.hub_model_id` names no repository; name it, such as "
            "'user/adapter'."
        )
    return recipe


def read_recipe(file: str | Path, overrides: Sequence[str] = (), **fixed: Any) -> dict[str, Any]:
    """What a recipe says, overrides included; arguments and errors as those of [`load_recipe`]."""
    values = read_yaml(file, overrides, _with_section, **fixed)
    if not values:
        raise ValueError(f"The recipe {str(file)!r} is empty; it has the sections {', '.join(SECTIONS)}.")
    check_names(f"The recipe {str(file)!r}", values, SECTIONS)
    for name, section in values.items():
        if section is not None and not isinstance(section, dict):
            raise ValueError(
                f"`{name}` is {section!r}, where a section belongs; give its entries: `{name}.ENTRY=VALUE`."
            )
    return values


def save_recipe(recipe: Recipe, file: Path) -> None:
    """Write what a recipe says, for `load_recipe`. Secrets are left out."""
    values = {
        section: {
            name: _as_built(value, getattr(getattr(recipe, section), name, None))
            for name, value in (entries or {}).items()
            if not SECRET_ENTRY.fullmatch(name)
        }
        for section, entries in recipe.values.items()
    }
    sources = [dict(source) for source in values["data"]["sources"]]
    for source, built in zip(sources, recipe.data.sources):
        if not built.is_synthetic and not is_local(built.path):
            source.setdefault("split", "train")  # so that everybody sees that it is a dataset of the Hub
    values["data"]["sources"] = sources
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _as_built(said: Any, built: Any) -> Any:
    """What a recipe says, with the numbers and switches that its words and variables stood for in this run."""
    if isinstance(said, dict):
        return {name: _as_built(value, getattr(built, name, None)) for name, value in said.items()}
    if isinstance(said, list) and isinstance(built, list) and len(said) == len(built):
        return [_as_built(*pair) for pair in zip(said, built)]
    return built if isinstance(said, str) and isinstance(built, (bool, int, float)) else said


def _with_section(key: str) -> str:
    """A key's path, its section included."""
    name = key.split(".")[0]
    if name in SECTIONS:
        return key
    owners = [section for section, kind in SECTIONS.items() if name in (field.name for field in fields(kind))]
    if len(owners) != 1:
        where = f"in {' and '.join(owners)}; write `{owners[0]}.{key}`" if owners else "in no section"
        raise ValueError(f"The override `{key}` is {where}. Sections are {', '.join(SECTIONS)}.")
    return f"{owners[0]}.{key}"
