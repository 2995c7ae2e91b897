"""Token ids as users give them: checked, and without their padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


Ids = torch.Tensor | Sequence[torch.Tensor] | Sequence[Sequence[int]] | Sequence[int]


def unpad(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, name: str = "input_ids") -> list[list[int]]:
    """The real tokens of every row of a padded batch.

    Args:
        input_ids (`torch.LongTensor` of shape (rows, tokens)): The batch.
        attention_mask (`torch.Tensor` of shape (rows, tokens), *optional*): 1 at real tokens. None: all are.
        name (`str`): What the user calls the ids, for messages.

    Raises:
        ValueError: if the ids are no integers, a row is empty, or its mask has a hole in the middle.
    """
    mask = check_batch(input_ids, attention_mask, name)
    for row, holed in enumerate([] if mask is None else _holes(mask)):
        if holed:
            raise ValueError(
                f"Row {row} of `attention_mask` has a hole in the middle; a row must be one unbroken run of tokens "
                f"with padding on the left or on the right. Remove the masked tokens from `{name}`."
            )
    return real_tokens(input_ids, mask)


def real_row(row: Mapping[str, Any], name: str = "input_ids") -> Any:
    """What stands at the real tokens of a row of a dataset: those that its `attention_mask`, if any, leaves in."""
    if row.get("attention_mask") is None:
        return row[name]
    values, mask = torch.as_tensor(row[name]), torch.as_tensor(row["attention_mask"])
    return unpad(values[None], mask[None], name)[0]


def check_batch(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, name: str = "input_ids"
) -> torch.Tensor | None:
    """Check a batch, whose mask may have holes. Returns the mask as booleans on the CPU, if there is one."""
    check_ids(input_ids, name)
    if input_ids.dim() != 2:
        raise ValueError(f"`{name}` must have the shape (rows, tokens), got {tuple(input_ids.shape)}.")
    if input_ids.numel() == 0:
        raise ValueError(f"`{name}` is empty (shape {tuple(input_ids.shape)}); give at least one token.")
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, torch.Tensor):
        raise ValueError(
            f"`attention_mask` must be a tensor of the shape of `{name}`, got {type(attention_mask).__name__}."
        )
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"`attention_mask` has the shape {tuple(attention_mask.shape)}, but `{name}` has "
            f"{tuple(input_ids.shape)}; they must be the same."
        )
    mask = attention_mask.cpu().bool()  # at once, not row by row
    for row, real in enumerate(mask.any(1).tolist()):
        if not real:
            raise ValueError(
                f"Row {row} of `attention_mask` masks every token; drop the row, or give it at least one token."
            )
    return mask


def has_hole(mask: torch.Tensor | None) -> bool:
    """Whether a mask, if there is one, hides tokens between others."""
    return mask is not None and any(_holes(mask.cpu().bool()))


def _holes(mask: torch.Tensor) -> list[bool]:
    # a row without holes turns from padding to tokens, or back, once at each end
    starts = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0]
    return (starts > 1).tolist()


def document_rows(document_ids: Ids, attention_mask: torch.Tensor | None) -> list[list[int]]:
    """Ids of each document, whatever form they came in."""
    if isinstance(document_ids, np.ndarray):
        document_ids = torch.as_tensor(document_ids)
    if isinstance(document_ids, torch.Tensor):
        ids = document_ids[None] if document_ids.dim() == 1 else document_ids
        return unpad(ids, attention_mask, "document_ids")
    if attention_mask is not None:
        raise ValueError("`attention_mask` belongs to a padded tensor, but `document_ids` is a list; leave it out.")
    if not isinstance(document_ids, (list, tuple)):
        check_ids(document_ids, "document_ids")
    documents: list = list(document_ids)
    if documents and isinstance(documents[0], int):
        documents = [documents]
    rows = [_document(row) for row in documents]
    if not rows or not all(rows):
        raise ValueError("`document_ids` is empty, or has an empty document; give at least one token for each.")
    return rows


def _document(row: Any) -> list[int]:
    if isinstance(row, np.ndarray):
        row = torch.as_tensor(row)
    if isinstance(row, torch.Tensor) and row.dim() == 1 and (row.numel() == 0 or is_integral(row)):
        return row.tolist()
    if isinstance(row, (list, tuple)) and all(type(token) is int for token in row):
        return list(row)
    raise ValueError(
        f"`document_ids` must hold 1-D tensors or lists of token ids, one for each document, got {_shown(row)}; give "
        "what `tokenizer(text).input_ids` returns."
    )


def check_ids(ids: Any, name: str) -> None:
    """Raise a ValueError if something is no tensor of token ids."""
    if not isinstance(ids, torch.Tensor):
        raise ValueError(
            f"`{name}` must be token ids, got {_shown(ids)}; give what `tokenizer(text, "
            f'return_tensors="pt").input_ids` '
            "returns."
        )
    if not is_integral(ids):
        raise ValueError(f"`{name}` must be integer token ids, got a tensor of {ids.dtype}.")


def is_integral(ids: torch.Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def real_tokens(values: torch.Tensor, attention_mask: torch.Tensor | None) -> list[list[int]]:
    """What stands at the real tokens of every row of (rows, tokens)."""
    if attention_mask is None:
        return values.tolist()
    return [row[mask].tolist() for row, mask in zip(values.cpu(), attention_mask.cpu().bool())]


def check_vocabulary(rows: Sequence[Sequence[int]], vocab_size: int, name: str = "input_ids") -> None:
    """Raise a ValueError if an id lies outside the vocabulary (the embedding would fail deep inside, or on a GPU
    later).
    """
    for number, row in enumerate(rows):
        low, high = min(row), max(row)
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"`{name}` holds the token id {low if low < 0 else high} in row {number}, outside the vocabulary of "
                f"{vocab_size} tokens; check that tokenizer and model belong together."
            )
