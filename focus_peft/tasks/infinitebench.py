"""InfiniteBench's retrieval tasks (Zhang et al., arXiv 2402.13718; github.com/OpenBMB/InfiniteBench).

Prompts are made as in its `data/construct_synthetic_dataset.py`, within the templates of `src/prompt.py` for models without a chat
format; metrics are those of `src/compute_scores.py`, and lengths of answers those of `src/eval_utils.py`. The published samples have
one or two fixed lengths; here they are filled to any. Answers stand at evenly spaced depths.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .samples import Draft, Sample, Source, Task, fill, first_integer_match, spread, word_match


TASK = "There is an important info hidden inside a lot of irrelevant text. {find} I will quiz you about the important information there."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
RETRIEVAL = "Extract the value corresponding to the specified key in the JSON object below."


@dataclass(frozen=True)
class DigitsTask(Task):
    """Digits in noise: the pass key, or a number string.

    Attributes:
        find (`str`): What the model is told to do.
        what (`str`): What it is asked for.
        repeats (`int`): Digits that are doubled, after five different ones have been drawn.
    """

    name: str
    find: str
    what: str
    repeats: int
    new_tokens: int
    is_binary: bool = True

    def sample(self, source: Source, tokens: int, number: int, samples: int) -> Sample:
        digits = self.digits(source.random(self.name, tokens, number))
        depth = spread(number, samples)
        hidden = f"The {self.what} is {digits}. Remember it. {digits} is the {self.what}.\n"

        def build(noises: int) -> Draft:
            before = round(depth * noises)
            context = NOISE * before + hidden + NOISE * (noises - before)
            text = f"{TASK.format(find=self.find)}\n\n{context}\n\nWhat is the {self.what}?"
            return Draft(text, f"\n\nThe {self.what} is", (digits,), depth)

        return fill(build, source, tokens - self.new_tokens)

    def digits(self, generator: Random) -> str:
        """Five random digits, and then copies beside some of them."""
        digits = [str(generator.randint(0, 9)) for _ in range(5)]
        for done in range(self.repeats):
            place = generator.randint(0, 4 + done)
            digits.insert(place, digits[place])
        return "".join(digits)

    def score(self, prediction: str, references: Sequence[str]) -> float:
        return first_integer_match(prediction, references)


@dataclass(frozen=True)
class KeyValueRetrieval(Task):
    """A JSON object of random keys and values: find the value of one key."""

    name: str = "kv_retrieval"
    new_tokens: int = 50
    is_binary: bool = True

    def sample(self, source: Source, tokens: int, number: int, samples: int) -> Sample:
        depth = spread(number, samples)

        def build(pairs: int) -> Draft:
            generator = source.random(self.name, tokens, number)
            made = [(_uuid(generator), _uuid(generator)) for _ in range(pairs)]
            key, value = made[round(depth * (pairs - 1))]
            data = ", ".join(f'"{name}": "{held}"' for name, held in made)
            text = f'{RETRIEVAL}\n\nJSON data:\n{{{data}}}\n\nKey: "{key}"'
            return Draft(text, "\nThe value associated with the specified key is: ", (value,), depth)

        return fill(build, source, tokens - self.new_tokens, least=1)

    def score(self, prediction: str, references: Sequence[str]) -> float:
        return word_match(prediction, references)


def _uuid(generator: Random) -> str:
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


INFINITEBENCH_TASKS = (
    DigitsTask("infinitebench_passkey", "Find it and memorize them.", "pass key", repeats=0, new_tokens=6),
    DigitsTask("number_string", "Find it.", "sequence of digits", repeats=5, new_tokens=12),
    KeyValueRetrieval(),
)
