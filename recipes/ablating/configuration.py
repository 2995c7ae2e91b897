"""The configuration of ablations: which variants there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from evaluating.configuration import Evaluation
from lib.recipe import load_recipe
from lib.yaml_files import build, check_names, read_config
from peft import PeftConfig

from focus_peft import FocusConfig
from focus_peft.config import READING_FIELDS
from focus_peft.frozen.fingerprint import digest


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        study, name (`str`): The table, and the row.
        train, evaluate (`dict`): What is changed, as overrides of the recipe and of the evaluation.
        training (`str`, *optional*): A digest of the recipe with all overrides: variants with the same one share an
            adapter. None: nothing is trained.
        train_words, evaluate_words (`list[str]`): All overrides of the recipe and of the evaluation, those of every
            variant included. The adapter is evaluated with the recipe's base model.
        evaluation (`Evaluation`): What these make of the evaluation.
    """

    study: str
    name: str
    train: dict[str, Any]
    evaluate: dict[str, Any]
    training: str | None
    train_words: list[str]
    evaluate_words: list[str]
    evaluation: Evaluation


@dataclass
class Ablations:
    """A configuration.

    Attributes:
        evaluation (`str`): The evaluation. Its adapter is that of each variant, and so is its model if a recipe is
            given.
        studies (`dict`): For each study its variants by name, each with `train` or `evaluate` or both, or nothing.
        recipe (`str`, *optional*): The training recipe.
        adapter (`str`, *optional*): The folder of a trained adapter, in place of a recipe: all variants read with it.
        train, evaluate (`dict`): Overrides of all variants, before their own: `{focus.r: 8}`.
        output_dir (`str`): Where adapters, samples and tables go. Defaults to "outputs/ablations/" and the name of the
            file.
    """

    evaluation: str
    studies: dict[str, dict[Any, Any]]
    recipe: str | None = None
    adapter: str | None = None
    train: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    output_dir: str = ""

    @classmethod
    def load(cls, file: str, overrides: Sequence[str] = ()) -> Ablations:
        """Read a configuration, and build every recipe and every evaluation in it, so that none fails after hours.

        Raises:
            ValueError: for whatever cannot be.
        """
        values = read_config(file, overrides, needed=("evaluation", "studies"))
        return build(cls, {"output_dir": f"outputs/ablations/{Path(file).stem}", **values})

    def __post_init__(self) -> None:
        if (self.recipe is None) == (self.adapter is None):
            raise ValueError(
                "Give either `recipe`, which is trained, or `adapter`, which is read with, got "
                f"{self.recipe!r} and {self.adapter!r}."
            )
        self.variants: list[Variant] = []
        for study, variants in self.studies.items():
            for name, changes in (variants or {}).items():
                self.variants.append(self._variant(str(study), str(name), changes or {}))
        if not self.variants:
            raise ValueError("`studies` has no variants; name at least one, with what it changes or with nothing.")

    def _variant(self, study: str, name: str, changes: dict[str, Any]) -> Variant:
        where = f"`studies.{study}.{name}`"
        check_names(where, changes, ("train", "evaluate"))
        train, evaluate = changes.get("train") or {}, changes.get("evaluate") or {}
        try:
            focus, key, model = self._trained(train) if self.adapter is None else (self._given(train), None, {})
            train_words, evaluate_words = words(self.train, train), words(self.evaluate, evaluate, model)
            evaluation = Evaluation.load(self.evaluation, evaluate_words)
            for entry in evaluation.focus:
                if entry not in READING_FIELDS:
                    can = ", ".join(READING_FIELDS)
                    raise ValueError(f"`focus.{entry}` cannot be changed after training; {can} can.")
            focus.with_overrides(**evaluation.focus)
        except ValueError as error:
            raise ValueError(f"{where} cannot be: {error}") from error
        return Variant(study, name, train, evaluate, key, train_words, evaluate_words, evaluation)

    def _trained(self, train: dict[str, Any]) -> tuple[FocusConfig, str, dict[str, Any]]:
        """(the adapter's configuration, a digest, an override with the base model) of the recipe with some changes."""
        recipe = load_recipe(str(self.recipe), words(self.train, train))
        said = {**recipe.values, "training": {**(recipe.values.get("training") or {}), "output_dir": None}}
        key = digest(json.dumps(said, sort_keys=True, default=str).encode())[:12]
        return recipe.focus, key, {"model": recipe.values["model"]}

    def _given(self, train: dict[str, Any]) -> FocusConfig:
        """The configuration of the adapter that is there."""
        if self.train or train:
            raise ValueError(
                f"`train` changes {words(self.train, train)}, but nothing is trained with `adapter`; give a `recipe`, "
                "or change `evaluate`."
            )
        folder = Path(str(self.adapter))
        if not (folder / "adapter_config.json").is_file():
            raise ValueError(f"`adapter` is {self.adapter!r}, which is no folder of an adapter; download it first.")
        return cast(FocusConfig, PeftConfig.from_pretrained(str(folder)))


def words(*overrides: dict[str, Any]) -> list[str]:
    """Overrides as the recipes take them: `key=value`, later ones instead of earlier ones."""
    merged = {key: value for each in overrides for key, value in each.items()}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in merged.items()]
