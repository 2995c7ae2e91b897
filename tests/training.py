"""What the tests of training share: small documents, seeds, and comparisons of losses and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tiny import random_ids
from torch import nn


EXACTLY = 1e-9
IGNORED = -100
Gradients = dict[str, torch.Tensor | None]  # by the twin's name


def document(length: int = 44, seed: int = 0) -> list[int]:
    return random_ids(length, seed).tolist()


def batch_of(rows: Sequence[list[int]]) -> torch.Tensor:
    return torch.tensor(rows)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
