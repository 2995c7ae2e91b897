"""A text with a hidden sentence, and the question that asks for it."""

from __future__ import annotations

import random
from pydoc_data.topics import topics
from typing import Any

import torch


NEEDLE = " By the way, the number of the blue safe in the cellar is {number}."
QUESTION = "What is the number of the blue safe in the cellar?"


def haystack(tokenizer: Any, tokens: int, seed: int) -> tuple[torch.Tensor, str]:
    """The Python reference with the needle in it: ids of shape (1, about `tokens`), and the number."""
    draw = random.Random(seed)
    number = str(draw.randint(10000, 99999))
    paragraphs = "\n\n".join(text for _, text in sorted(topics.items())).split("\n\n")
    while len(tokenizer("\n\n".join(paragraphs), verbose=False).input_ids) > tokens:
        del paragraphs[len(paragraphs) * 9 // 10 :]
    paragraphs[draw.randrange(len(paragraphs))] += NEEDLE.format(number=number)
    return tokenizer("\n\n".join(paragraphs), verbose=False, return_tensors="pt").input_ids, number


def question_text(question: str) -> str:
    """What stands behind the document."""
    return f"\n\nQuestion: {question}\nAnswer:"


def question_ids(tokenizer: Any, question: str) -> torch.Tensor:
    """The same as ids of shape (1, tokens)."""
    return tokenizer(question_text(question), return_tensors="pt").input_ids
