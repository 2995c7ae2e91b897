"""What may be published of an adapter and its run: a list of what may go. Everything else stays on this machine."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..config import OPTIONS
from .card_training import HYPER_PARAMETERS
from .provenance import DATASET_ENTRIES, HUB_NAME, SECRET, Provenance
from .results import Result
from .run_options import COURSE


# Of an adapter's configuration, besides our own fields
CONFIG_ENTRIES = ("auto_mapping", "inference_mode", "peft_type", "peft_version", "revision", "task_type")
# Of each section of a recipe; `training` tells what decides the course of the run
FOCUS_ENTRIES = frozenset(option.name for option in OPTIONS) - {"storage_dir"}
RECIPE_ENTRIES: dict[str, Iterable[str]] = {
    "model": ("name_or_path", "revision", "dtype", "load_in_4bit", "attn_implementation", "random"),
    "focus": FOCUS_ENTRIES,
    "data": ("sources", "bands", "min_tokens", "max_tokens", "held_out", "seed"),
    "training": (COURSE | set(HYPER_PARAMETERS)) - {"optim_args", "chat_template_path", "dataset_kwargs"},
    "run": ("passkey_every", "passkey_tokens", "passkey_samples", "eval_samples", "patience"),
}
SOURCE_ENTRIES = (
    *("path", "name", "split", "revision", "streaming", "text_column", "instruction_column", "answer_column"),
    *("weight", "max_documents", "max_tokens", "documents"),
)
# Texts that come with Python, wherever it is installed
STANDARD_LIBRARY = "${STDLIB}/"
# Stands for a path of this machine
HIDDEN = "PATH"
# The recipes' own files, as a command names them; and a word with a slash in it
OWN_FILES = "recipes/"
WORD = re.compile(r"[^\s'\"=,:\[\]{}()]*/[^\s'\",\[\]{}()]*")


def public_base(name: str | None) -> str | None:
    """The base model's name on the Hub. None for a folder of this machine, which is of no use to others."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return None
    return None if Path(str(name)).exists() else name


def public_config(values: Mapping[str, Any], base_model: str | None) -> dict[str, Any]:
    """An adapter's configuration with the base model's name on the Hub, and no path of this machine."""
    known = {name: value for name, value in values.items() if name in FOCUS_ENTRIES or name in CONFIG_ENTRIES}
    return {**known, "base_model_name_or_path": base_model, "storage_dir": None}


def public_recipe(recipe: Mapping[str, Any], base_model: str | None) -> dict[str, Any]:
    """A recipe, as `read_recipe` reads it, with the entries that may be published."""
    found: dict[str, Any] = {}
    for section, entries in RECIPE_ENTRIES.items():
        values = recipe.get(section)
        if isinstance(values, Mapping):
            found[section] = {name: value for name, value in values.items() if name in entries and value != ""}
    model, data = found.get("model", {}), found.get("data", {})
    if "name_or_path" in model:
        model["name_or_path"] = base_model or HIDDEN
    if "sources" in data:
        data["sources"] = [_public_source(source) for source in data["sources"] if isinstance(source, Mapping)]
    return {section: values for section, values in found.items() if values}


def _public_source(source: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: source[name] for name in SOURCE_ENTRIES if name in source}
    on_hub = bool(DATASET_ENTRIES & source.keys())
    for name in ("path", "documents"):
        if name in known:
            known[name] = public_path(str(known[name]), on_hub)
    return known


def public_path(path: str, on_hub: bool = False) -> str:
    """A source's path, if it is one for everybody; else what kind of files it names.

    Args:
        path (`str`): The path, or the number of a source.
        on_hub (`bool`): Whether what stands beside it is only said of datasets. Defaults to False.
    """
    if path.isdigit() or path.startswith("synthetic:"):
        return path
    if path.startswith(STANDARD_LIBRARY) and ".." not in path:
        return path
    if on_hub and HUB_NAME.fullmatch(path) and not Path(path).exists():
        return path
    kind = PurePosixPath(path).suffix
    return f"local files ({kind})" if re.fullmatch(r"\.\w{1,8}", kind) else "local files"


def public_provenance(known: Provenance, base_model: str | None) -> Provenance:
    """What is known of a run, with the part of its recipe that may be published."""
    return known if known.recipe is None else replace(known, recipe=public_recipe(known.recipe, base_model))


def public_result(result: Result) -> Result:
    """A result whose words name no file of this machine."""
    words = {name: value for name, value in result.settings.items() if isinstance(value, str) and _is_path(value)}
    return replace(
        result,
        dataset=public_path(result.dataset) if _is_path(result.dataset) else result.dataset,
        settings={**result.settings, **dict.fromkeys(words, HIDDEN)},
        command=_without_paths(result.command),
    )


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~", ".")) or "/" in text and (glob.has_magic(text) or os.path.exists(text))


def _without_paths(command: str) -> str:
    """A command with `HIDDEN` in place of files, but for the recipes' own."""
    return re.sub(WORD, lambda word: word[0] if word[0].startswith(OWN_FILES) else HIDDEN, command)


def check_nothing_private(files: Iterable[Path]) -> None:
    """Raise a ValueError if a text among the files holds a token, or a path of whoever publishes it."""
    token = get_token()
    for file in files:
        text = "" if file.suffix in (".safetensors", ".png") else file.read_text(encoding="utf-8", errors="replace")
        if SECRET.search(text) or token and token in text:
            raise ValueError(
                f"`{file.name}` would hold what looks like a token of the Hub; take it out before it is published."
            )
        folder = next((place for place in _own_folders() if re.search(rf"{re.escape(place)}(?![\w-])", text)), None)
        if folder is not None:
            raise ValueError(
                f"`{file.name}` would hold {folder!r}, a folder of this machine; take it out before it is published."
            )


def _own_folders() -> list[str]:
    """The home folder and the working directory, unless every machine has such a one."""
    return [place for place in (str(Path.home()), os.getcwd()) if place.count(os.sep) > 1 or place == "/root"]
