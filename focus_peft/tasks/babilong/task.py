"""BABILong's first three tasks (Kuratov et al., arXiv 2406.10149; github.com/booydar/babilong): the facts of a bAbI
story stand, in order, between the sentences of a long text, and a question needs one, two or three of them.

Prompts are those of `babilong/prompts.py` at commit 1d9718c, quirks and all, the metric that of `babilong/metrics.py`,
the length of answers that of `scripts/run_model_on_babilong.py`. What differs: stories are drawn here (see `stories`),
and background is that of `Source.texts` (published: PG19) from its start on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ..samples import Draft, Request, published_prompts
from ..task import FilledTask
from .stories import PLACES, story


TEMPLATE = "{instruction}\n{examples}\n{post_prompt}\n<context>\n{context}\n</context>\nQuestion: {question}"
PROMPTS = published_prompts(__file__)


@dataclass(frozen=True)
class ReasoningTask(FilledTask):
    """Facts in a text, and a question that needs some of them. References are the answer and, if one stands in the
    question, the place that an answer may name besides.

    Attributes:
        facts (`int`): How many an answer needs, 1 to 3; the number of the bAbI task.
    """

    name: str
    facts: int
    new_tokens: int = 15
    is_binary: bool = True

    def draft(self, request: Request, words: int) -> Draft:
        told = story(self.facts, request.source.random(self.name, request.number))
        references = (told.answer,) if told.named is None else (told.answer, told.named)
        context = hidden(told.facts, request.source.sentences(words), request.random(self.name, "places"))
        return Draft(
            TEMPLATE.format(**PROMPTS[f"qa{self.facts}"], context=context, question=told.question), "", references
        )

    def score(self, prediction: str, references: Sequence[str]) -> float:
        first = re.split(r"\.|<context>|<example>", prediction.strip().lower())[0]
        named = {place for place in PLACES if place in first} - set(references[1:])
        return float(named == {references[0]})


def hidden(facts: Sequence[str], sentences: Sequence[str], generator: Random) -> str:
    """A text with facts between its sentences, in their order, at random places of which one may hold several."""
    places = sorted(generator.randint(0, len(sentences)) for _ in facts)
    hidden = list(sentences)
    for place, fact in reversed(list(zip(places, facts))):
        hidden.insert(place, fact)
    return " ".join(hidden)


BABILONG_TASKS = tuple(ReasoningTask(f"babilong_qa{facts}", facts) for facts in (1, 2, 3))
