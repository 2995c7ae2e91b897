"""What the tests of training share: small documents, their losses, by the library and one label at a time, and
comparisons of losses and gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from naive_loss import NaiveFocus
from peft import PeftModel
from tiny import make_tiny_model, random_ids
from torch import nn

from focus_peft import FocusOutput
from focus_peft.losses.documents import Document
from focus_peft.losses.objectives import focus_loss
from focus_peft.losses.readings import LabeledWindow, Reading, Window
from focus_peft.losses.sampling import Sample


EXACTLY = 1e-9
IGNORED = -100
Gradients = dict[str, torch.Tensor | None]  # by the twin's name


def document(length: int = 44, seed: int = 0) -> list[int]:
    return random_ids(length, seed).tolist()


def batch_of(rows: Sequence[list[int]]) -> torch.Tensor:
    return torch.tensor(rows)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reading(memory: list[int], chunk_size: int, window: Window) -> Reading:
    """One window behind a memory."""
    return Reading(memory, chunk_size, None, [LabeledWindow("continuation", window, [])])


def naive_of(model: PeftModel, family: str = "llama", base: dict[str, Any] | None = None) -> NaiveFocus:
    """The naive computation for a model that `make_focus_model` made."""
    config = model.peft_config["default"]
    plain = make_tiny_model(family, **(base or {}))
    bos = plain.config.bos_token_id if config.add_bos else None
    return NaiveFocus(plain, model, config.decoding, config.prompt_size, bos)


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


def gradients(model: nn.Module) -> Gradients:
    """What the twins' gradients are now."""
    return {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if ".focus_" in name
    }


def gradients_of(model: nn.Module, loss: torch.Tensor) -> Gradients:
    """The twins' gradients of a loss, and of nothing before it."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return gradients(model)


def combined(parts: Sequence[Gradients], weight: float = 1.0) -> Gradients:
    """`weight` times the sum of some gradients."""
    result: Gradients = {}
    for name in parts[0]:
        present = [part[name] for part in parts if part[name] is not None]
        result[name] = weight * sum(present[1:], start=present[0]) if present else None
    return result


def assert_same_gradients(
    found: Gradients, expected: Gradients, tolerance: float = EXACTLY, none_is_zero: bool = False
) -> None:
    """Relative, by norm, for each matrix; and missing in the same places, unless `none_is_zero`."""
    assert found.keys() == expected.keys()
    assert any(gradient is not None for gradient in expected.values())
    for name in expected:
        got, wanted = found[name], expected[name]
        assert none_is_zero or (got is None) == (wanted is None), name
        if got is None and wanted is None:
            continue
        got = torch.zeros_like(wanted) if got is None else got
        wanted = torch.zeros_like(got) if wanted is None else wanted
        assert (got - wanted).norm().item() <= tolerance * wanted.norm().item() + 1e-15, name


def assert_equal_to(value: Any, expected: Any, tolerance: float = EXACTLY) -> None:
    """Two scalars agree to a relative `tolerance`."""
    value, expected = (torch.as_tensor(number, dtype=torch.float64).detach() for number in (value, expected))
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=1e-12)
