"""RULER's needles in a haystack (Hsieh et al., arXiv 2404.06654; github.com/NVIDIA/RULER, scripts/data/synthetic).

Templates are those of RULER's `constants.py`, the eight configurations those of its `synthetic.yaml`, and so is the
metric, the share of values that stand in the answer. What differs: keys that are words come from `word_list` (RULER:
the package wonderwords), and no distractor has a key that is asked for. RULER's real texts are Paul Graham's essays;
here they are those of `Source.texts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from ..matching import string_match_all
from ..samples import NOISE, Draft, Request, Source, random_uuid
from ..task import FilledTask
from .word_list import COMPOUNDS, compound


TEMPLATE = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. I will quiz "
    "you about the {type_needle_v} afterwards.\n{context}\nWhat are all the special magic {type_needle_v} for {query} "
    "mentioned in the provided text?"
)
START = " The special magic {type_needle_v} for {query} mentioned in the provided text are"
NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
# Of a real text, where needles may stand, in percent
DEPTHS = [round(100 * number / 39) for number in range(40)]

Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True)
class NeedleTask(FilledTask):
    """Needles with keys and values, hidden in noise, in real texts, or among other needles; the depth is that of the
    first answer.

    Attributes:
        haystack (`str`): "repeat", "essay" or "needle".
        keys, values (`str`): "words", "numbers" or "uuids".
        num_keys (`int`): Keys that are hidden.
        num_values (`int`): Values of each.
        num_queries (`int`): Keys that are asked for.
    """

    name: str
    haystack: Literal["repeat", "essay", "needle"]
    keys: Kind = "words"
    values: Kind = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    new_tokens: int = 128

    @property
    def is_binary(self) -> bool:  # type: ignore[override]
        return self.num_values * self.num_queries == 1

    measure = staticmethod(string_match_all)

    def least(self, request: Request) -> int:
        return 0 if self.haystack == "essay" else max(self.num_keys, self.num_queries) * self.num_values

    def draft(self, request: Request, units: int) -> Draft:
        """A prompt with so many words of real texts, or other sentences, around its needles."""
        generator = request.random(self.name)
        keys: list[str] = []
        while len(keys) < max(self.num_keys, self.num_queries):
            key = made_up(self.keys, generator)
            if key not in keys:
                keys.append(key)
        values = {key: [made_up(self.values, generator) for _ in range(self.num_values)] for key in keys}
        needles = [self._needle(key, value) for key in keys for value in values[key]]
        generator.shuffle(needles)
        queries = generator.sample(keys, self.num_queries)
        answers = tuple(value for key in queries for value in values[key])
        if self.haystack == "essay":
            context = in_text(request.source, generator, needles, units)
        else:
            context = self._among_sentences(generator, needles, units, keys)
        query = queries[0] if len(queries) == 1 else ", ".join(queries[:-1]) + ", and " + queries[-1]
        text, start, kind = TEMPLATE, START, str(self.values)
        if self.is_binary:
            text = text.replace("Some", "A").replace("are all", "is").replace("are", "is")
            start, kind = start.replace("are", "is"), kind[:-1]
        depth = context.index(answers[0]) / len(context)
        fields = {"type_needle_v": kind, "query": query}
        return Draft(text.format(context=context, **fields), start.format(**fields), answers, round(depth, 3))

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(type_needle_v=self.values, key=key, value=value)

    def _among_sentences(self, generator: Random, needles: list[str], units: int, keys: list[str]) -> str:
        sentences = [NOISE] * units
        if self.haystack == "needle":
            sentences = []
            while len(sentences) < units:
                key = made_up(self.keys, generator)
                if key not in keys:
                    sentences.append(self._needle(key, made_up(self.values, generator)))
        places = sorted(generator.sample(range(units), len(needles)), reverse=True)
        for place, needle in zip(places, needles):
            sentences.insert(place, needle)
        return "\n".join(sentences)


def in_text(source: Source, generator: Random, needles: list[str], words: int) -> str:
    """The first words of the source's texts, with needles between the sentences."""
    sentences = source.sentences(words)
    cuts = sorted(int(len(sentences) * depth / 100) for depth in generator.sample(DEPTHS, len(needles)))
    parts: list[str] = []
    for start, end, needle in zip([0, *cuts], cuts, needles):
        parts += [*sentences[start:end], needle]
    return " ".join([*parts, *sentences[cuts[-1] :]])


def made_up(kind: Kind, generator: Random) -> str:
    """A random number of seven digits, a word of two, or a UUID."""
    if kind == "numbers":
        return str(generator.randint(10**6, 10**7 - 1))
    if kind == "words":
        return compound(generator.randrange(COMPOUNDS))
    return random_uuid(generator)


NIAH_TASKS = (
    NeedleTask("niah_single_1", "repeat"),
    NeedleTask("niah_single_2", "essay"),
    NeedleTask("niah_single_3", "essay", values="uuids"),
    NeedleTask("niah_multikey_1", "essay", num_keys=4),
    NeedleTask("niah_multikey_2", "needle"),
    NeedleTask("niah_multikey_3", "needle", keys="uuids", values="uuids"),
    NeedleTask("niah_multivalue", "essay", num_values=4),
    NeedleTask("niah_multiquery", "essay", num_queries=4),
)
