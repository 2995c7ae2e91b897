"""BABILong's first three tasks (Kuratov et al., arXiv 2406.10149; github.com/booydar/babilong): the facts of a bAbI story stand, in order,
between the sentences of a long text, and a question needs one, two or three of them.

Prompts are those of `babilong/prompts.py` at commit 1d9718c, quirks and all, the metric that of `babilong/metrics.py`, the length of answers that of
`scripts/run_model_on_babilong.py`. What differs: stories are drawn here (see `babi`), background is that of `Source.texts` (published: PG19)
from its start on, and its sentences end where a full stop, question or exclamation mark is followed by a space (published: NLTK).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ..samples import Draft, Sample, Source, Task, fill
from .stories import PLACES, story


TEMPLATE = "{instruction}\n{examples}\n{post_prompt}\n<context>\n{context}\n</context>\nQuestion: {question}"
ITEMS = (
    "You need to answer the question based only on the information from the facts.\nIf a person got an item in the first location and "
    "travelled to the second location the item is also in the second location. If a person dropped an item in the first location and moved "
    "to the second location the item remains in the first location"
)
HIDDEN = "I give you context with the facts about locations and actions of different persons hidden in some random text and a question."
INSTRUCTIONS = {
    1: "I will give you context with the facts about positions of different persons hidden in some random text and a question. You need to "
    "answer the question based only on the information from the facts. If a person was in different locations, use the latest location to "
    "answer the question.",
    2: f"{HIDDEN}{ITEMS}.",
    3: f"{HIDDEN} {ITEMS}",
}
EXAMPLES = {
    1: (
        "<example>\nCharlie went to the hallway. Judith come back to the kitchen. Charlie travelled to balcony. Where is Charlie?\n"
        "Answer: The most recent location of Charlie is balcony.\n</example>\n\n"
        "<example>\nAlan moved to the garage. Charlie went to the beach. Alan went to the shop. Rouse travelled to balcony. Where is Alan?\n"
        "Answer: The most recent location of Alan is shop.\n</example>"
    ),
    2: (
        "<example>\nCharlie went to the kitchen. Charlie got a bottle. Charlie moved to the balcony. Where is the bottle?\n"
        "Answer: The bottle is in the balcony.\n</example>\n"
        "<example>\nAlan moved to the garage. Alan got a screw driver. Alan moved to the kitchen. Where is the screw driver?\n"
        "Answer: The screw driver is in the kitchen.\n</example>"
    ),
    3: (
        "<example>\nJohn journeyed to the bedroom.Mary grabbed the apple. Mary went back to the bathroom. Daniel journeyed to the bedroom. "
        "Daniel moved to the garden. Mary travelled to the kitchen. Where was the apple before the kitchen?\n"
        "Answer: Before the kitchen the apple was in the bathroom.\n</example>\n"
        "<example>\nJohn went back to the bedroom. John went back to the garden. John went back to the kitchen. Sandra took the football. "
        "Sandra travelled to the garden. Sandra journeyed to the bedroom. Where was the football before the bedroom?\n"
        "Answer: Before the kitchen the football was in the garden.\n</example>"
    ),
}
POST_PROMPTS = {
    1: "Always return your answer in the following format: The most recent location of ’person’ is ’location’. Do not write anything else "
    "after that.",
    2: "Always return your answer in the following format: The ’item’ is in ’location’. Do not write anything else after that.",
    3: "Always return your answer in the following format: Before the $location_1& the $item$ was in the $location_2$. Do not write "
    "anything else after that.",
}


@dataclass(frozen=True)
class ReasoningTask(Task):
    """Facts in a text, and a question that needs some of them. References are the answer and, if one stands in the question, the place that
    an answer may name besides.

    Attributes:
        facts (`int`): How many an answer needs, 1 to 3; the number of the bAbI task.
    """

    name: str
    facts: int
    new_tokens: int = 15
    is_binary: bool = True

    def sample(self, source: Source, tokens: int, number: int, samples: int) -> Sample:
        told = story(self.facts, source.random(self.name, number))
        references = (told.answer,) if told.named is None else (told.answer, told.named)
        words = source.text_words

        def build(count: int) -> Draft:
            text = " ".join(words[place % len(words)] for place in range(count))
            text = hidden(told.facts, text, source.random(self.name, tokens, number, "places"))
            parts = (INSTRUCTIONS[self.facts], EXAMPLES[self.facts], POST_PROMPTS[self.facts])
            fields = dict(zip(("instruction", "examples", "post_prompt"), parts))
            return Draft(TEMPLATE.format(**fields, context=text, question=told.question), "", references)

        return fill(build, source, tokens - self.new_tokens)

    def score(self, prediction: str, references: Sequence[str]) -> float:
        first = re.split(r"\.|<context>|<example>", prediction.strip().lower())[0]
        named = {place for place in PLACES if place in first} - set(references[1:])
        return float(named == {references[0]})


def hidden(facts: Sequence[str], text: str, generator: Random) -> str:
    """A text with facts between its sentences, in their order, at random places of which one may hold several."""
    sentences = re.split(r"(?<=[.!?])\s+", text) if text else []
    places = sorted(generator.randint(0, len(sentences)) for _ in facts)
    for place, fact in reversed(list(zip(places, facts))):
        sentences.insert(place, fact)
    return " ".join(sentences)


BABILONG_TASKS = tuple(ReasoningTask(f"babilong_qa{facts}", facts) for facts in (1, 2, 3))
