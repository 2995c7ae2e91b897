"""A trained adapter as a folder to publish: weights, configuration, card, recipe, results, figure; nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peft.utils import CONFIG_NAME

from ..adapter_file import WEIGHTS_FILE
from ..config import FocusConfig
from ..peft_type import FOCUS
from ..saving import saving_whole
from .card import CARD_FILE, CardFacts
from .licenses import LICENSES
from .provenance import HUB_NAME, Provenance
from .public import check_nothing_private, public_base, public_provenance, public_result
from .public_files import (
    ALLOWED,
    FIGURES,
    RESULTS_FILE,
    check_measured,
    check_output,
    is_published,
    remove_others,
    write_files,
)
from .results import load_results
from .run_folder import STATE_FILE, checkpoints
from .weights import DTYPES, check_weights, weights_digest


@dataclass(frozen=True)
class AdapterFolder:
    """The folder of a trained adapter, checked.

    Attributes:
        path (`Path`): Where it is.
        config (`FocusConfig`): Its configuration.
        base_model (`str`): The base model's name on the Hub.
        left_out (`list[str]`): Names in the folder that are not published.
    """

    path: Path
    config: FocusConfig
    base_model: str
    left_out: list[str]

    @classmethod
    def of(cls, folder: str | os.PathLike, base_model: str | None = None) -> AdapterFolder:
        """Check a folder.

        Args:
            folder (`str`): A checkpoint, or where an adapter was saved.
            base_model (`str`, *optional*): The base model's name on the Hub. Defaults to what the configuration says.

        Raises:
            ValueError: if there is no focus adapter in safetensors, or its base model is a path of this machine.
        """
        path = Path(folder)
        if not (path / WEIGHTS_FILE).is_file() or not (path / CONFIG_NAME).is_file():
            raise ValueError(
                f"`adapter` {str(path)!r} holds no {WEIGHTS_FILE} with its {CONFIG_NAME}; {_instead(path)}."
            )
        try:
            kind = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8")).get("peft_type")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"The configuration {str(path / CONFIG_NAME)!r} is damaged: {error}.") from error
        if kind != FOCUS.value:
            raise ValueError(
                f"The folder {str(path)!r} holds a {kind} adapter, not one of focus_peft; publish it with PEFT."
            )
        config = FocusConfig.from_pretrained(path)
        left_out = sorted(file.name for file in path.iterdir() if file.name not in (*ALLOWED, STATE_FILE))
        return cls(path, config, _hub_name(base_model, config.base_model_name_or_path), left_out)


@dataclass(frozen=True)
class Release:
    """What is published of an adapter.

    Attributes:
        adapter (`str`): A checkpoint, or the output folder of a run.
        license (`str`): The license's identifier on the Hub, for example "apache-2.0".
        base_model (`str`, *optional*): The base model's name on the Hub. Defaults to what the adapter's configuration
            says.
        repo_id (`str`, *optional*): Where the adapter will be, for the card's snippet.
        revision (`str`, *optional*): Its branch or tag there. Defaults to main.
        config (`str`, *optional*): The recipe it was trained with. Defaults to the `recipe.yaml` that
            `recipes/train.py` leaves.
        results (`Sequence[str]`): Files of results (see `focus_peft.results`); `results.json` holds them all.
        figure (`str`, *optional*): A picture, .svg or .png, for the card.
        notes (`str`, *optional*): A Markdown file for the card: what should be known of data, purpose and limits.
        dtype (`str`, *optional*): "bfloat16", "float16" or "float32": round the weights to it. None: as they are.
    """

    adapter: str | os.PathLike
    license: str
    base_model: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    config: str | os.PathLike | None = None
    results: Sequence[str | os.PathLike] = ()
    figure: str | os.PathLike | None = None
    notes: str | os.PathLike | None = None
    dtype: str | None = None

    @cached_property
    def source(self) -> AdapterFolder:
        """The adapter's folder. A ValueError if there is no adapter that can be published."""
        return AdapterFolder.of(self.adapter, self.base_model)

    def write(self, output: str | os.PathLike, overwrite: bool = False) -> dict[str, Path]:
        """Write the folder that is published. Everything is checked first, and written whole or not at all.

        Args:
            output (`str`): The folder.
            overwrite (`bool`): Replace files in it that differ. Defaults to False.

        Returns:
            `dict[str, Path]`: the files, by name.

        Raises:
            ValueError: if something given cannot be published; the message names it.
            FileExistsError: if `output` has files that differ, without `overwrite`.
        """
        facts = self._card_facts()
        target = Path(output)
        with saving_whole(target) as scratch:
            write_files(scratch, self.source.path, facts, self.dtype)
            if self.figure is not None:
                shutil.copy(self.figure, scratch)
            files = sorted(scratch.iterdir())
            check_nothing_private(files)
            check_output(files, target, overwrite)
            remove_others(files, target)
        return {file.name: target / file.name for file in files}

    def _card_facts(self) -> CardFacts:
        """What the card is made of, but for the weights. Raises a ValueError for what cannot be published."""
        if self.license not in LICENSES:
            raise ValueError(
                "`license` must be one of the Hub's identifiers, such as 'apache-2.0', or 'other' with its terms in "
                f"`notes`; got {self.license!r}."
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(map(repr, DTYPES))}, got {self.dtype!r}.")
        known = Provenance.of(self.adapter, self.config)
        known.check(self.source.config)
        notes = None if self.notes is None else _read_notes(Path(self.notes))
        if known.recipe is None and notes is None:
            raise ValueError(
                "A card must say what the adapter was trained on; give the recipe as `config`, or a Markdown file "
                "that says it as `notes`."
            )
        return CardFacts(
            self.source.config,
            self.source.base_model,
            self.repo_id,
            self.revision,
            self.license,
            public_provenance(known, self.source.base_model),
            results=[public_result(result) for file in self.results for result in load_results(file)],
            figure=None if self.figure is None else check_figure(Path(self.figure)).name,
            notes=notes,
        )


def publishable_files(folder: str | os.PathLike) -> dict[str, Path]:
    """The files of a folder that [`Release.write`] wrote, for another upload of them as they are, by name.

    Raises:
        ValueError: if the folder lacks weights, configuration or card, or holds what is never uploaded.
    """
    root = Path(folder)
    found = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*")) if file.is_file()}
    found = {name: file for name, file in found.items() if not name.startswith(".")}  # .gitattributes, .cache/...
    strange = [name for name in found if not is_published(name)]
    if strange:
        raise ValueError(
            f"`folder` {str(root)!r} holds {', '.join(map(repr, strange))}, and only {', '.join(ALLOWED)} and figures "
            "are published; pickles and code never are. Remove it, or publish the folder as `adapter`."
        )
    missing = [name for name in (WEIGHTS_FILE, CONFIG_NAME, CARD_FILE) if name not in found]
    if missing:
        raise ValueError(f"`folder` {str(root)!r} lacks {', '.join(missing)}; write it with `output` first.")
    AdapterFolder.of(root)
    check_weights(root / WEIGHTS_FILE)
    if RESULTS_FILE in found:
        check_measured(load_results(found[RESULTS_FILE]), {weights_digest(root / WEIGHTS_FILE)})
    check_nothing_private(found.values())
    return found


def check_figure(file: Path) -> Path:
    """Raise a ValueError unless a file is a picture by its name and its beginning."""
    if file.suffix not in FIGURES:
        raise ValueError(f"`figure` must be an .svg or .png file, got {str(file)!r}.")
    try:
        head = file.read_bytes()[:1024]
    except OSError as error:
        raise ValueError(f"`figure` {str(file)!r} cannot be read: {error.strerror}.") from error
    if not (head.startswith(b"\x89PNG\r\n") if file.suffix == ".png" else b"<svg" in head):
        raise ValueError(f"`figure` {str(file)!r} is no {file.suffix} picture; export it again.")
    return file


def _hub_name(given: str | None, configured: str | None) -> str:
    """The base model's name on the Hub; a path of this machine is of no use to others."""
    name = given or configured
    remedy = "publish the folder as `adapter`, with the model's name on the Hub as `base_model`"
    if not name:
        raise ValueError(f"The adapter's configuration does not name its base model; {remedy}.")
    if public_base(name) is None and (given is None or not HUB_NAME.fullmatch(given)):
        raise ValueError(f"The base model is {name!r}, which is no name on the Hub, or a folder here; {remedy}.")
    return name


def _read_notes(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`notes` {str(file)!r} cannot be read as UTF-8 text: {error}.") from error


def _instead(folder: Path) -> str:
    """What to do about a folder that holds no adapter."""
    if any(folder.glob("adapter_model.bin")):
        return (
            "its weights are a pickle, which is never opened; save the adapter again, with `safe_serialization=True`"
        )
    last = checkpoints(folder)
    if last:
        return f"its run was not finished, but it has checkpoints, the last one {str(last[-1])!r}"
    return "name a folder that an adapter was saved in"
