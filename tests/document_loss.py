"""The loss of one document: by the library, and one label at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from conftest import make_tiny_model
from naive_loss import NaiveFocus, NaiveSpan
from peft import PeftModel

from focus_peft import FocusOutput
from focus_peft.losses.documents import Document
from focus_peft.losses.objectives import focus_loss
from focus_peft.losses.readings import LabeledWindow, Reading, Window
from focus_peft.losses.sampling import Sample, Span


def reading(memory: list[int], chunk_size: int, window: Window) -> Reading:
    """One window behind a memory."""
    return Reading(memory, chunk_size, None, [LabeledWindow("continuation", window, [])])


def naive_of(model: PeftModel, family: str = "llama", base: dict[str, Any] | None = None) -> NaiveFocus:
    """The naive computation for a model that `make_focus_model` made."""
    config = model.peft_config["default"]
    plain = make_tiny_model(family, **(base or {}))
    bos = plain.config.bos_token_id if config.add_bos else None
    return NaiveFocus(plain, model, config.decoding, config.prompt_size, bos)


def naive_span(sample: Sample, span: Span) -> NaiveSpan:
    return NaiveSpan(sample.memory, sample.chunk_size, span.start, span.local, span.labels)


def naive_loss(naive: NaiveFocus, ids: list[int], targets: list[int], sample: Sample) -> torch.Tensor:
    """The sum of the two losses of one document."""
    spans = [naive_span(sample, span) for span in (sample.continuation, sample.repetition) if span is not None]
    return torch.stack([naive.loss(ids, targets, [span]) for span in spans]).sum()


def loss_of(
    model: PeftModel,
    ids: list[int],
    sample: Sample,
    targets: list[int] | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    distill_weight: float = 0.0,
    **overrides: Any,
) -> FocusOutput:
    """`focus_loss` of one document."""
    tuner = model.base_model
    settings = tuner.settings(**overrides)
    config = dataclasses.replace(
        settings.config,
        continuation_weight=weights[0],
        repetition_weight=weights[1],
        distill_weight=distill_weight,
    )
    settings = dataclasses.replace(settings, config=config)
    return focus_loss(tuner.reader, settings, [Document(ids, targets or ids, sample)])
