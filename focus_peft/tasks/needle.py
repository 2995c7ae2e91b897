"""The Python reference with a hidden sentence, and the question that asks for it: what the demos read."""

from __future__ import annotations

import random
from pydoc_data.topics import topics
from typing import Any


NEEDLE = " By the way, the number of the blue safe in the cellar is {number}."
QUESTION = "What is the number of the blue safe in the cellar?"


def haystack(tokenizer: Any, tokens: int, seed: int) -> tuple[str, str]:
    """The Python reference with the needle in it, about `tokens` long, and the number."""
    draw = random.Random(seed)
    number = str(draw.randint(10000, 99999))
    paragraphs = "\n\n".join(text for _, text in sorted(topics.items())).split("\n\n")
    while len(tokenizer("\n\n".join(paragraphs), verbose=False).input_ids) > tokens:
        del paragraphs[len(paragraphs) * 9 // 10 :]
    paragraphs[draw.randrange(len(paragraphs))] += NEEDLE.format(number=number)
    return "\n\n".join(paragraphs), number


def prompt_ids(tokenizer: Any, text: str, question: str) -> list[int]:
    """The tokens of a document, and those of a question behind it."""
    return [token for part in (text, question_text(question)) for token in tokenizer(part, verbose=False).input_ids]


def question_text(question: str) -> str:
    """What stands behind the document."""
    return f"\n\nQuestion: {question}\nAnswer:"
