"""The model card of an adapter, filled from what is known of it. What is not known is not in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..config import FocusConfig
from .card_results import results_section
from .markdown import cell, pairs, table
from .provenance import HUB_NAME, Provenance
from .results import ADAPTER, Result


CARD_FILE = "README.md"


# A card with this line was written here and may be written anew; without it, it is somebody's own
MARK = "<!-- Written by focus_peft. Without this line, the card is yours: saving the adapter again leaves it as it is. -->"
TAGS = ("focus_peft", "focusllm", "long-context")
# Stand for what is not known
HERE, BASE = "path/to/this/folder", "path/to/the/base/model"
# Entries of a recipe's `training` that decide what is learned
HYPER_PARAMETERS = (
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim", "adam_beta1", "adam_beta2"),
    *("weight_decay", "max_grad_norm", "distractors", "bf16", "fp16", "use_cpu", "seed", "load_best_model_at_end"),
)
# Of its `model`: how the base model was loaded
LOADED = ("revision", "dtype", "load_in_4bit", "gguf_file")
LOSS_FIELDS = (
    "loss",
    "continuation_weight",
    "repetition_weight",
    "distill_weight",
    "label_size",
    "train_local_size",
    "train_min_chunk_size",
)
# (what is evaluated, metric of the adapter, metric of the local window alone)
EVALUATED = (
    ("continuation", "loss_continuation", "loss_local_continuation"),
    ("repetition", "loss_repetition", "loss_local_repetition"),
)
LIMITS = (
    "`import focus_peft` has to come first: PEFT has no plug-in mechanism, and without the import loading ends in `KeyError: 'FOCUS'`.",
    "A candidate holds one key and one value per layer for a whole chunk. Do not expect long quotations, or sums over all chunks, "
    "as from a model that attends to every token.",
    "The adapter cannot be merged into the base model; `unload()` gives the base model back.",
    "It fits this base model alone. What the base model gets wrong, its biases and its languages, it gets wrong with the adapter too.",
)


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        config (`FocusConfig`): The adapter's configuration.
        base_model (`str`): The base model's name on the Hub, or where it was loaded from.
        repo_id (`str`, *optional*): Where the adapter will be; the snippet loads it from there. None: a folder.
        revision (`str`, *optional*): Its branch or tag there. None: main.
        license (`str`, *optional*): The licence's identifier on the Hub, for example "apache-2.0".
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
    sections = [
        MARK if mark else "",
        f"# {facts.name}",
        _introduction(facts),
        facts.notes.strip() if facts.notes else "",
        "## How to use\n\n```python\n" + snippet(facts.base_model, facts.repo_id, facts.revision) + "\n```",
        "## The adapter\n\n" + table(("", ""), _adapter_rows(facts)),
        _training(facts),
        results_section(facts.results, facts.figure, facts.name),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in LIMITS),
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{text}\n")


def snippet(base_model: str, repo_id: str | None, revision: str | None = None) -> str:
    """The lines of Python that load an adapter and let it answer."""
    place = json.dumps(repo_id or HERE) + (f", revision={json.dumps(revision)}" if revision else "")
    return f"""\
import focus_peft  # registers the method with PEFT
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({json.dumps(base_model)})
base = AutoModelForCausalLM.from_pretrained({json.dumps(base_model)})
model = PeftModel.from_pretrained(base, {place})

memory = model.encode(tokenizer("A long document.", return_tensors="pt").input_ids)
question = tokenizer("\\n\\nQuestion: What is this?\\nAnswer:", return_tensors="pt")
output = model.generate(**question, memory=memory, max_new_tokens=50)
print(tokenizer.decode(output[0, question.input_ids.shape[1] :], skip_special_tokens=True))"""


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
        dataset_config=result.task,  # numbers of one dataset are put together, so two tasks must differ in more than the name
        metric_type=re.sub(r"\W+", "_", result.metric).strip("_").lower(),
        metric_name=result.metric + (f" ({pairs(result.settings)})" if result.settings else ""),
        metric_value=result.value,
        metric_args=dict(result.settings) or None,
    )


def _introduction(facts: CardFacts) -> str:
    base = facts.base_model
    link = f"[{base}](https://huggingface.co/{base})" if HUB_NAME.fullmatch(base) else f"`{base}`"
    return (
        f"An adapter that gives {link} a long context; the base model stays frozen. The text before the local window is cut into "
        "chunks, which are read in parallel, and each passes on one candidate token: "
        "[FocusLLM](https://arxiv.org/abs/2408.11745), as the PEFT method of the package `focus_peft`."
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


def _training(facts: CardFacts) -> str:
    known, config = facts.provenance, facts.config
    parts = []
    if known.sources():
        parts.append("Data:\n\n" + table(("source", "details"), [_source(source) for source in known.sources()]))
        sizes = {name: known.section("data").get(name) for name in ("min_tokens", "max_tokens", "held_out")}
        given = ", ".join(f"`{name}`: {value}" for name, value in sizes.items() if value is not None)
        parts.append(f"Of all documents: {given}." if given else "")
    entries = [("model", f"base model's `{name}`", name) for name in LOADED]
    entries += [("training", f"`{name}`", name) for name in HYPER_PARAMETERS]
    given_rows = [(title, known.section(section).get(name)) for section, title, name in entries]
    rows = [(title, cell(value)) for title, value in given_rows if value is not None]
    if known.step is not None:
        planned = known.state.get("max_steps")
        rows.append(("steps trained", f"{known.step:,}" + (f" of {planned:,}" if planned else "")))
    if rows:  # else nothing is known of the training, and the fields of the loss may never have been used
        fields = {name: getattr(config, name) for name in LOSS_FIELDS}
        rows += [(f"`{name}`", cell(value)) for name, value in fields.items() if value is not None]
        parts.append("Hyper-parameters:\n\n" + table(("", ""), rows))
    parts.append(_held_out(known))
    parts = [part for part in parts if part]
    if not parts:
        return "" if facts.notes else "## Training\n\nNothing is recorded here of what this adapter was trained on."
    if known.recipe_file is not None:
        parts.append("The whole configuration of the run is in the YAML file beside this card.")
    return "## Training\n\n" + "\n\n".join(parts)


def _source(source: dict[str, Any]) -> tuple[str, str]:
    details = ", ".join(f"`{name}`: {cell(value)}" for name, value in source.items() if name != "path")
    return f"`{cell(source.get('path', ''))}`", details


def _held_out(known: Provenance) -> str:
    """The table of the last evaluation's losses."""
    found = known.evaluation()
    rows = [
        (what, f"{found[mine]:.3f}", f"{found[alone]:.3f}" if alone in found else "")
        for what, mine, alone in EVALUATED
        if mine in found
    ]
    if not rows:
        return ""
    step = f"{int(found['step']):,}"
    head = ("", "adapter", "local window alone")
    return f"Cross-entropy (nats per token) on held-out documents, at step {step}:\n\n" + table(head, rows)


def write_card(
    file: Path,
    before: str | None,
    config: FocusConfig,
    repo_id: str | None = None,
    license: str | None = None,
    provenance: Provenance | None = None,
) -> None:
    """Finish the card that PEFT has just written beside a saved adapter.

    Args:
        file (`Path`): The card.
        before (`str`, *optional*): What stood there before. Somebody's own text stays, with what PEFT added to its metadata.
        config (`FocusConfig`): The adapter's configuration.
        repo_id, license, provenance: As in [`CardFacts`].
    """
    if before is None or MARK in before:
        base = config.base_model_name_or_path or BASE
        facts = CardFacts(config, base, repo_id, license=license, provenance=provenance or Provenance())
        make_card(facts, mark=True).save(file)
    else:
        add_tags(file, ModelCard(before).data.get("tags") or [])  # which PEFT replaces


def write_run_card(folder: str | os.PathLike, config: FocusConfig, repo_id: str | None, license: str | None) -> None:
    """Write the card of a run's output folder, with what is known of the run; somebody's own card stays as it is."""
    file = Path(folder, CARD_FILE)
    if not file.is_file() or MARK in file.read_text(encoding="utf-8"):
        write_card(file, None, config, repo_id, license, Provenance.of(folder))


def add_tags(file: Path, tags: Iterable[str]) -> None:
    """Add tags to the metadata of a card."""
    card = ModelCard.load(file)
    card.data["tags"] = list(dict.fromkeys([*tags, *(card.data.get("tags") or [])]))
    card.save(file)
