"""RULER's variable tracking, common words and frequent words (Hsieh et al., arXiv 2404.06654;
github.com/NVIDIA/RULER).

Templates and sizes are those of RULER's `constants.py` and `synthetic.yaml`, the metric is the share of references
that stand in the answer. What differs: the solved example that comes first in two of the tasks is set apart by an
empty line and always has the same size; words come from `word_list` (RULER: the package wonderwords, and where it has
too few, a longer list of English words).
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from ..matching import string_match_all
from ..samples import NOISE, Draft, Request, Source
from ..task import FilledTask
from .word_list import ADJECTIVES, COMPOUNDS, NOUNS, compound


TRACKING = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: "
    "Find all variables that are assigned the value {query} in the text above."
)
TRACKING_START = (
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are assigned the "
    "value {query}, they are: "
)
COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
COMMON_START = " Answer: The top 10 words that appear most often in the list are:"
FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What "
    "are the three most frequently appeared words in the above coded text?"
)
FREQUENT_START = " Answer: According to the coded text above, the three most frequently appeared words are:"
# Noise sentences of the solved example
EXAMPLE_NOISE = 10


class RulerTask(FilledTask):
    """What the three have in common."""

    is_binary = False
    measure = staticmethod(string_match_all)


@dataclass(frozen=True)
class VariableTracking(RulerTask):
    """Chains of assignments in noise: find all variables with one value.

    Attributes:
        chains (`int`): Chains; the first is asked for.
        hops (`int`): Assignments from variable to variable in each.
    """

    name: str = "vt"
    new_tokens: int = 30
    chains: int = 1
    hops: int = 4

    def least(self, request: Request) -> int:
        return self.hops + 2

    def draft(self, request: Request, sentences: int) -> Draft:
        generator = request.random(self.name)
        example = self.question(generator, EXAMPLE_NOISE, letters=3)
        asked = self.question(generator, sentences, letters=5)
        solved = f"{example.text}{example.start} {' '.join(example.references)}\n\n"
        return replace(asked, text=solved + asked.text)

    def question(self, generator: Random, sentences: int, letters: int) -> Draft:
        """A prompt without an example, with variables of so many letters."""
        names: list[str] = []
        while len(names) < self.chains * (self.hops + 1):
            name = "".join(generator.choices(string.ascii_uppercase, k=letters))
            if name not in names:
                names.append(name)
        lines, values = [NOISE + "\n"] * sentences, []
        for first in range(0, len(names), self.hops + 1):
            chain = names[first : first + self.hops + 1]
            values.append(str(generator.randrange(10000, 99999)))
            assigned = [f"VAR {chain[0]} = {values[-1]}"]
            assigned += [f"VAR {later} = VAR {earlier} " for earlier, later in zip(chain, chain[1:])]
            places = sorted(generator.sample(range(len(lines)), len(assigned)))
            for done, (place, line) in enumerate(zip(places, assigned)):
                lines.insert(place + done, line)
        context = " ".join(lines).replace(". \n", ".\n")
        text = TRACKING.format(context=context, query=values[0])
        start = TRACKING_START.format(query=values[0], num_v=self.hops + 1)
        return Draft(text, start, tuple(names[: self.hops + 1]))


@dataclass(frozen=True)
class CommonWords(RulerTask):
    """A numbered list in which ten words stand more often than all others: find them."""

    name: str = "cwe"
    new_tokens: int = 120
    common: int = 10

    def least(self, request: Request) -> int:
        return self.common + 1

    def draft(self, request: Request, words: int) -> Draft:
        generator, long = request.random(self.name), request.tokens >= 4096
        # how many words the example has, and how often common and other words stand in it and in the prompt
        example, in_example, in_prompt = (40, (10, 3), (30, 3)) if long else (20, (3, 1), (6, 1))
        listed, answers = self.listing(request.source, generator, example, *in_example)
        context, references = self.listing(request.source, generator, words, *in_prompt)
        solved = f"{COMMON.format(context=listed)}{COMMON_START} {numbered(answers)}\n"
        return Draft(solved + COMMON.format(context=context), COMMON_START, references)

    def listing(
        self, source: Source, generator: Random, words: int, often: int, seldom: int
    ) -> tuple[str, tuple[str, ...]]:
        """A numbered list of so many different words, and those that stand in it `often`."""
        chosen = different_words(source, generator, words)
        listed = chosen[: self.common] * often + chosen[self.common :] * seldom
        generator.shuffle(listed)
        return numbered(listed), tuple(chosen[: self.common])


@dataclass(frozen=True)
class FrequentWords(RulerTask):
    """A text of coded words whose frequencies fall as k^-2: find the three most frequent, after the dots."""

    name: str = "fwe"
    new_tokens: int = 50
    letters: int = 6

    def least(self, request: Request) -> int:
        return 80  # then no two of the first five are as frequent

    def draft(self, request: Request, words: int) -> Draft:
        generator = request.random(self.name)
        vocabulary = ["..."]
        while len(vocabulary) < max(8, request.tokens // 50):
            word = "".join(generator.choices(string.ascii_lowercase, k=self.letters))
            if word not in vocabulary:
                vocabulary.append(word)
        text = []
        for rank, word in enumerate(vocabulary, 1):
            text += [word] * int(words / rank**2 / (math.pi**2 / 6))  # the sum of all k^-2
        generator.shuffle(text)
        return Draft(FREQUENT.format(context=" ".join(text)), FREQUENT_START, tuple(vocabulary[1:4]))


def numbered(words: Iterable[str]) -> str:
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, 1))


def different_words(source: Source, generator: Random, count: int) -> list[str]:
    """So many different words, in random order.

    Raises:
        ValueError: if there are not enough.
    """
    words = sorted(set(source.words or ADJECTIVES + NOUNS))
    if count <= len(words):
        return generator.sample(words, count)
    if source.words or count > COMPOUNDS:
        most = len(words) if source.words else COMPOUNDS
        raise ValueError(
            f"`words` has {most} different words, but {count} are needed; give more, or a shorter length."
        )
    return [compound(number) for number in generator.sample(range(COMPOUNDS), count)]


RULER_TASKS = (VariableTracking(), CommonWords(), FrequentWords())
