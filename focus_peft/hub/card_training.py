"""The training of an adapter in its model card: data, hyper-parameters, and losses on held-out documents."""

from __future__ import annotations

from typing import Any

from ..config import FocusConfig
from ..options import LOSS, OPTIONS
from .markdown import table, words
from .provenance import Provenance


# Entries of a recipe's `model` that say how the base model was loaded
MODEL_ENTRIES = ("revision", "dtype", "load_in_4bit")
# Of its `training`: what decides what is learned
HYPER_PARAMETERS = (
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim", "adam_beta1", "adam_beta2"),
    *("weight_decay", "max_grad_norm", "distractors", "bf16", "fp16", "use_cpu", "seed", "load_best_model_at_end"),
)
# (what is evaluated, metric of the adapter, metric of the local window alone)
EVALUATED = (
    ("continuation", "loss_continuation", "loss_local_continuation"),
    ("repetition", "loss_repetition", "loss_local_repetition"),
)


def training_section(known: Provenance, config: FocusConfig) -> str:
    """The section without its heading; empty if nothing is known."""
    parts = [part for part in (_data(known), _hyper_parameters(known, config), _held_out(known)) if part]
    if parts and known.recipe_file is not None:
        parts.append("The whole configuration of the run is in the YAML file beside this card.")
    return "\n\n".join(parts)


def _data(known: Provenance) -> str:
    if not known.sources():
        return ""
    text = "Data:\n\n" + table(("source", "details"), [_source(source) for source in known.sources()])
    sizes = {name: known.section("data").get(name) for name in ("min_tokens", "max_tokens", "held_out")}
    given = ", ".join(f"`{name}`: {value}" for name, value in sizes.items() if value is not None)
    return text + (f"\n\nOf all documents: {given}." if given else "")


def _source(source: dict[str, Any]) -> tuple[str, str]:
    details = ", ".join(f"`{name}`: {words(value)}" for name, value in source.items() if name != "path")
    return f"`{source.get('path', '')}`", details


def _hyper_parameters(known: Provenance, config: FocusConfig) -> str:
    model, training = known.section("model"), known.section("training")
    rows = [(f"base model's `{name}`", model[name]) for name in MODEL_ENTRIES if model.get(name) is not None]
    rows += [(f"`{name}`", training[name]) for name in HYPER_PARAMETERS if training.get(name) is not None]
    if known.step is not None:
        planned = known.state.get("max_steps")
        rows.append(("steps trained", f"{known.step:,}" + (f" of {planned:,}" if planned else "")))
    if not rows:  # the fields of the loss may never have been used
        return ""
    fields = {option.name: getattr(config, option.name) for option in OPTIONS if option.metadata["group"] == LOSS}
    rows += [(f"`{name}`", value) for name, value in fields.items() if value is not None]
    return "Hyper-parameters:\n\n" + table(("", ""), rows)


def _held_out(known: Provenance) -> str:
    """The losses of the last evaluation."""
    found = known.evaluation()
    rows = [
        (what, f"{found[adapter]:.3f}", f"{found[window]:.3f}" if window in found else "")
        for what, adapter, window in EVALUATED
        if adapter in found
    ]
    if not rows:
        return ""
    step = f"{int(found['step']):,}"
    head = ("", "adapter", "local window alone")
    return f"Cross-entropy (nats per token) on held-out documents, at step {step}:\n\n" + table(head, rows)
