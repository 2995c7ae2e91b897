"""The files of a published adapter: written to a folder, and compared with what stood there before."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import yaml
from peft.utils import CONFIG_NAME

from ..adapter_file import WEIGHTS_FILE
from .card import BASE, CARD_FILE, CardFacts, make_card
from .public import public_config
from .results import Result, to_json
from .run_folder import RECIPE_FILE
from .weights import copy_weights, same_bytes, weights_digest


RESULTS_FILE = "results.json"
FIGURES = (".svg", ".png")
# All that is ever uploaded. Pickles (.bin, .pt, .pth, .pkl, .ckpt) and code are not, whatever the folder holds
ALLOWED = (WEIGHTS_FILE, CONFIG_NAME, CARD_FILE, RECIPE_FILE, RESULTS_FILE)


def is_published(name: str) -> bool:
    """Whether a file of this name may be uploaded."""
    return name in ALLOWED or Path(name).suffix in FIGURES and "/" not in name


class _Plain(yaml.SafeDumper):
    """Writes texts that stood in a YAML file as they stood there: 1e-3, not '1e-3'."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


def write_files(folder: Path, adapter: Path, facts: CardFacts, dtype: str | None = None, mark: bool = False) -> None:
    """Write what may be published of an adapter.

    Args:
        folder (`Path`): Where to.
        adapter (`Path`): The adapter's folder.
        facts (`CardFacts`): What its card is made of.
        dtype (`str`, *optional*): Round the weights to it. Defaults to their own type.
        mark (`bool`): Whether saving an adapter beside the card writes it anew. Defaults to False.

    Raises:
        ValueError: if results were measured with other weights.
    """
    parameters, kinds = copy_weights(adapter / WEIGHTS_FILE, folder / WEIGHTS_FILE, dtype)
    written = weights_digest(folder / WEIGHTS_FILE)
    check_measured(facts.results, {weights_digest(adapter / WEIGHTS_FILE), written})
    results = [replace(result, adapter=written) if result.adapter else result for result in facts.results]
    values: dict[str, Any] = json.loads((adapter / CONFIG_NAME).read_text(encoding="utf-8"))
    config = public_config(values, None if facts.base_model == BASE else facts.base_model)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if facts.provenance.recipe is not None:
        recipe = yaml.dump(facts.provenance.recipe, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=119)
        (folder / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    if results:
        (folder / RESULTS_FILE).write_text(to_json(results), encoding="utf-8")
    make_card(replace(facts, parameters=parameters, dtype=kinds), mark).save(folder / CARD_FILE)


def check_measured(results: Iterable[Result], digests: Container[str]) -> None:
    """Raise a ValueError for a result that says it was measured with other weights than these."""
    for result in results:
        if result.adapter is not None and result.adapter not in digests:
            raise ValueError(
                f"`results` has {result.task!r} ({result.metric}), which was measured with other weights (of the "
                f"digest {result.adapter}); measure this adapter, or leave the file out."
            )


def check_output(files: Iterable[Path], output: Path, overwrite: bool = False) -> None:
    """Raise a FileExistsError if a folder has files that differ, or are of another adapter, without `overwrite`."""
    files = list(files)
    places = [(file, output / file.name) for file in files]
    changed = [file.name for file, place in places if place.is_file() and not same_bytes(file, place)]
    changed += [file.name for file in _of_another_adapter(files, output)]
    if changed and not overwrite:
        raise FileExistsError(
            f"`output` {str(output)!r} has files that differ from these: {', '.join(sorted(changed))}. Give "
            "`overwrite` to replace them."
        )


def remove_others(files: Iterable[Path], output: Path) -> None:
    """Remove results, recipe and figures of another adapter, which would be taken for the new one's."""
    for file in _of_another_adapter(list(files), output):
        file.unlink()


def _of_another_adapter(files: list[Path], output: Path) -> list[Path]:
    """What a folder has to publish besides these files, if its weights are others."""
    weights = next(file for file in files if file.name == WEIGHTS_FILE)
    before = output / WEIGHTS_FILE
    if not before.is_file() or same_bytes(weights, before):
        return []
    names = {file.name for file in files}
    there = [file for file in sorted(output.iterdir()) if file.is_file() and file.name not in names]
    return [file for file in there if is_published(file.name)]
