"""Answers to prompts about one document, generated together by the model's own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..frozen.compat import CACHE
from ..memory.memory import Memory
from ..passes.chunking import pad_left
from ..tasks.methods.base import end_tokens
from .row import Row


class ChooseByRow(LogitsProcessor):
    """Lets each row choose its token, and leaves `generate` no other."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = torch.full_like(scores, -torch.inf)
        for number, row in enumerate(self.rows):
            chosen[number, 0 if row.finish else row.choose(scores[number])] = 0
        return chosen


class StopByRow(StoppingCriteria):
    """Hands each row its token, and ends it when it is whole; with `close`, its last piece goes at once."""

    def __init__(self, rows: Sequence[Row], ends: list[int], close: bool) -> None:
        self.rows, self.ends, self.close = rows, ends, close

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, token in zip(self.rows, input_ids[:, -1].tolist()):
            if not row.finish and row.push(token, self.ends) and self.close:
                row.close(None)
        return torch.tensor([bool(row.finish) for row in self.rows], device=input_ids.device)


def generate(
    model: Any, rows: Sequence[Row], memory: Memory | None, end: Sequence[int], read_chunks: int | None, pad: int
) -> None:
    """Generate all answers of a batch. Pieces go to the rows as they come.

    Args:
        model (`PeftModel`): With the adapter.
        rows (`Sequence[Row]`): What is asked; without a memory just one prompt, maybe several times.
        memory (`Memory`, *optional*): The document that all are about.
        end (`Sequence[int]`): What stands behind the memory and before each prompt.
        read_chunks (`int`, *optional*): As in `FocusConfig`.
        pad (`int`): A token that stands where rows are shorter, and is hidden.
    """
    device, prompts = model.device, [[*end, *row.ids] for row in rows]
    ends = end_tokens(model.get_base_model())
    options: dict[str, Any] = {} if memory is None else {"memory": memory}
    if read_chunks:
        options["read_chunks"] = read_chunks
    output = model.generate(
        input_ids=pad_left(prompts, pad).to(device),
        attention_mask=pad_left([[1] * len(prompt) for prompt in prompts]).to(device),
        max_new_tokens=max(row.max_tokens for row in rows),
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=pad,
        logits_processor=LogitsProcessorList([ChooseByRow(rows)]),
        stopping_criteria=StoppingCriteriaList([StopByRow(rows, ends, close=not read_chunks)]),
        return_dict_in_generate=True,
        progress=False,
        **options,
    )
    if read_chunks:  # which is known behind the last token only
        read = getattr(output.get(CACHE), "read_chunks", None)
        for number, row in enumerate(rows):
            row.close(None if read is None else read[number])
