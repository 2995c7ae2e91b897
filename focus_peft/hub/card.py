"""The model card of an adapter, filled from what is known of it. What is not known is not in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..config import FocusConfig
from .card_results import results_section
from .card_training import training_section
from .markdown import pairs, table
from .provenance import HUB_NAME, Provenance
from .public import public_base, public_provenance
from .results import ADAPTER, Result


CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card_template.md")
# A card with this line was written here and may be written anew; without it, it is somebody's own
MARK = (
    "<!-- Written by focus_peft. Without this line, the card is yours: "
    "saving the adapter again leaves it as it is. -->"
)
TAGS = ("focus_peft", "focusllm", "long-context")
# Stand for what is not known
HERE, BASE = "path/to/this/folder", "path/to/the/base/model"
# The section that PEFT adds to a card whenever it saves an adapter
VERSIONS = "### Framework versions"


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        config (`FocusConfig`): The adapter's configuration.
        base_model (`str`): The base model's name on the Hub, or where it was loaded from.
        repo_id (`str`, *optional*): Where the adapter will be; the snippet loads it from there. None: a folder.
        revision (`str`, *optional*): Its branch or tag there. None: main.
        license (`str`, *optional*): The license's identifier on the Hub, for example "apache-2.0".
        provenance (`Provenance`): How it was made.
        results (`Sequence[Result]`): What it was found to do.
        dtype (`str`, *optional*): The type of the weights in the file.
        parameters (`int`, *optional*): Their number.
        figure (`str`, *optional*): The name of a picture beside the card.
        notes (`str`, *optional*): More Markdown, put after the introduction.
    """

    config: FocusConfig
    base_model: str
    repo_id: str | None = None
    revision: str | None = None
    license: str | None = None
    provenance: Provenance = field(default_factory=Provenance)
    results: Sequence[Result] = ()
    dtype: str | None = None
    parameters: int | None = None
    figure: str | None = None
    notes: str | None = None

    @property
    def name(self) -> str:
        """A title: the repository's name, or one made from the base model's."""
        return (self.repo_id or f"{self.base_model.rstrip('/')}-focus").rpartition("/")[2]


def make_card(facts: CardFacts, mark: bool = False) -> ModelCard:
    """The whole card: metadata and text. With `mark`, saving an adapter beside it writes it anew."""
    base = facts.base_model
    place = json.dumps(facts.repo_id or HERE)
    return ModelCard.from_template(
        _metadata(facts),
        template_path=str(TEMPLATE),
        mark=MARK if mark else "",
        name=facts.name,
        base_link=f"[{base}](https://huggingface.co/{base})" if HUB_NAME.fullmatch(base) else f"`{base}`",
        base=json.dumps(base),
        place=place if facts.revision is None else f"{place}, revision={json.dumps(facts.revision)}",
        notes=(facts.notes or "").strip(),
        adapter=table(("", ""), _adapter_rows(facts)),
        training=training_section(facts.provenance, facts.config),
        results=results_section(facts.results, facts.figure, facts.name),
    )


def _metadata(facts: CardFacts) -> ModelCardData:
    on_hub = HUB_NAME.fullmatch(facts.base_model) is not None
    return ModelCardData(
        base_model=facts.base_model if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        library_name="peft",
        license=facts.license,
        pipeline_tag="text-generation",
        tags=[*TAGS, *([f"base_model:adapter:{facts.base_model}"] if on_hub else [])],
        datasets=facts.provenance.hub_datasets() or None,
        model_name=facts.name,
        eval_results=[_eval_result(result) for result in facts.results if result.subject == ADAPTER] or None,
    )


def _eval_result(result: Result) -> EvalResult:
    slug = re.sub(r"[^\w.-]+", "-", result.dataset).strip("-").lower()
    return EvalResult(
        task_type="text-generation",
        task_name=result.task,
        dataset_type=result.dataset if HUB_NAME.fullmatch(result.dataset) else slug,
        dataset_name=result.dataset,
        dataset_config=result.task,  # the Hub groups by dataset, so two tasks must differ in more than the name
        metric_type=re.sub(r"\W+", "_", result.metric).strip("_").lower(),
        metric_name=result.metric + (f" ({pairs(result.settings)})" if result.settings else ""),
        metric_value=result.value,
        metric_args=dict(result.settings) or None,
    )


def _adapter_rows(facts: CardFacts) -> list[tuple[str, str]]:
    config = facts.config
    twins = "full copies" if config.r is None else f"low-rank, `r={config.r}`, `alpha={config.scaling * config.r:g}`"
    rows = [("twins", twins)]
    if config.target_modules is not None:
        rows.append(("`target_modules`", f"`{config.target_modules}`"))
    if facts.parameters is not None:
        rows.append(("parameters", f"{facts.parameters:,}" + (f", {facts.dtype}" if facts.dtype else "")))
    for name in ("chunk_size", "local_size", "prompt_size"):
        value = getattr(config, name)
        rows.append((f"`{name}`", "from the base model" if value is None else f"{value:,} tokens"))
    return [*rows, ("`decoding`", config.decoding)]


def complete_card(folder: Path, config: FocusConfig) -> None:
    """Replace the card that PEFT has just written for the adapter whose configuration was saved in a folder.

    Somebody's own card stays as PEFT left it.
    """
    # An adapter that is not called "default" has a folder of its own below the card's
    for file in (folder / CARD_FILE, folder.parent / CARD_FILE):
        if file.is_file() and _is_from_peft(file.read_text(encoding="utf-8", errors="replace")):
            saved_card(config).save(file)
            return


def saved_card(config: FocusConfig, repo_id: str | None = None, revision: str | None = None) -> ModelCard:
    """The card that a saved adapter gets, of which nothing but its configuration is known."""
    base = public_base(config.base_model_name_or_path) or BASE
    return make_card(CardFacts(config, base, repo_id, revision), mark=True)


def _is_from_peft(card: str) -> bool:
    """Whether PEFT has just written a card, and there are no words of somebody else in it."""
    text, section, versions = card.partition(VERSIONS)
    if not section:
        return False
    if MARK in text:
        return True
    untouched = ModelCard.from_template(ModelCardData()).text.strip()
    only_versions = all(line.startswith("- ") for line in versions.splitlines() if line)
    return only_versions and text.partition("\n---\n")[2].strip() == untouched


def run_facts(folder: str | os.PathLike, config: FocusConfig, repo_id: str | None, license: str | None) -> CardFacts:
    """What the card of a run's output folder is made of: what may be published of the run."""
    base = public_base(config.base_model_name_or_path)
    known = public_provenance(Provenance.of(folder), base)
    return CardFacts(config, base or BASE, repo_id, license=license, provenance=known)


def write_run_card(folder: str | os.PathLike, facts: CardFacts) -> None:
    """Write the card of a run's output folder, with what is known of the run; somebody's own card stays as it is."""
    file = Path(folder, CARD_FILE)
    if not file.is_file() or MARK in file.read_text(encoding="utf-8"):
        make_card(facts, mark=True).save(file)


def add_tags(file: Path, tags: Iterable[str]) -> None:
    """Add tags to the metadata of a card."""
    card = ModelCard.load(file)
    card.data["tags"] = list(dict.fromkeys([*tags, *(card.data.get("tags") or [])]))
    card.save(file)
