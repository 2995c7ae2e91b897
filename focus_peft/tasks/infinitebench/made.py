"""InfiniteBench's synthetic tasks at any length (Zhang et al., arXiv 2402.13718; github.com/OpenBMB/InfiniteBench).

Retrieval is made as in its `data/construct_synthetic_dataset.py`, lists and functions as sections 3.2.2 and 3.2.3 of
the paper and the published samples have them, all within the templates of `src/prompt.py` for models without a chat
format; metrics are those of `src/compute_scores.py`, and lengths of answers those of `src/eval_utils.py`. The
published samples have one or two fixed lengths; here they are filled to any. Answers of retrieval stand at evenly
spaced depths. `published` reads the published samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ..matching import first_integer_match, word_match
from ..samples import NOISE, Draft, Request, random_uuid
from ..task import FilledTask
from .metrics import found_number, returned_value
from .published import PROMPTS


TASK = (
    "There is an important info hidden inside a lot of irrelevant text. {find} I will quiz you about the important "
    "information there."
)
RETRIEVAL = "Extract the value corresponding to the specified key in the JSON object below."

# What is asked for in a list, and how many functions a call goes through, one sample after another
RANKED = [f"{rank}{end}" for end in ("largest", "smallest") for rank in ("", "second ", "third ")]
FINDS = [*RANKED, "median"]
CALLS = (2, 4, 6, 8, 10)
ONE_NUMBER = "You should answer with only one number, no other words."
MODULE = "\nHere is the content of functions_module.py:\n\n"


@dataclass(frozen=True)
class DigitsTask(FilledTask):
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

    measure = staticmethod(first_integer_match)

    def draft(self, request: Request, noises: int) -> Draft:
        digits, depth = self.digits(request.random(self.name)), request.depth
        hidden = f"The {self.what} is {digits}. Remember it. {digits} is the {self.what}.\n"
        before, noise = round(depth * noises), f"{NOISE}\n"
        context = noise * before + hidden + noise * (noises - before)
        text = f"{TASK.format(find=self.find)}\n\n{context}\n\nWhat is the {self.what}?"
        return Draft(text, f"\n\nThe {self.what} is", (digits,), depth)

    def digits(self, generator: Random) -> str:
        """Five random digits, and then copies beside some of them."""
        digits = [str(generator.randint(0, 9)) for _ in range(5)]
        for done in range(self.repeats):
            place = generator.randint(0, 4 + done)
            digits.insert(place, digits[place])
        return "".join(digits)


@dataclass(frozen=True)
class KeyValueRetrieval(FilledTask):
    """A JSON object of random keys and values: find the value of one key."""

    name: str = "kv_retrieval"
    new_tokens: int = 50
    is_binary: bool = True

    measure = staticmethod(word_match)

    def least(self, request: Request) -> int:
        return 1

    def draft(self, request: Request, pairs: int) -> Draft:
        generator, depth = request.random(self.name), request.depth
        made = [(random_uuid(generator), random_uuid(generator)) for _ in range(pairs)]
        key, value = made[round(depth * (pairs - 1))]
        data = ", ".join(f'"{name}": "{held}"' for name, held in made)
        text = f'{RETRIEVAL}\n\nJSON data:\n{{{data}}}\n\nKey: "{key}"'
        return Draft(text, "\nThe value associated with the specified key is: ", (value,), depth)


@dataclass(frozen=True)
class MathFind(FilledTask):
    """A list of numbers: find the largest, second or third largest, smallest, second or third smallest, or the
    median.
    """

    name: str = "math_find"
    new_tokens: int = 3
    is_binary: bool = True

    measure = staticmethod(found_number)

    def least(self, request: Request) -> int:
        return 21

    def draft(self, request: Request, units: int) -> Draft:
        kind, generator = FINDS[request.number % len(FINDS)], request.random(self.name)
        # one end of the range is drawn, so that it is not always the answer
        end = generator.choice(("smallest", "largest")) if kind == "median" else kind.split()[-1]
        low, high = (generator.randint(0, 19), 99) if end == "smallest" else (0, generator.randint(79, 99))
        count = units - 1 + units % 2 if kind == "median" else units  # with a number in the middle
        numbers = [generator.randint(low, high) for _ in range(count)]
        text = f"What is the {kind} number in the following list?\n\n{numbers}\n\n{ONE_NUMBER}"
        return Draft(text, f" The {kind} number of the list is: ", (str(self.answer(kind, numbers)),))

    def answer(self, kind: str, numbers: Sequence[int]) -> int:
        """Among different numbers; the median among all."""
        if kind == "median":
            return sorted(numbers)[len(numbers) // 2]
        rank = ("second", "third").index(kind.split()[0]) + 1 if " " in kind else 0
        return sorted(set(numbers), reverse="largest" in kind)[rank]


@dataclass(frozen=True)
class CodeRun(FilledTask):
    """Functions that add to, or subtract from, what another returns: find the value of a call, through 2, 4, 6, 8 or
    10 of them.
    """

    name: str = "code_run"
    new_tokens: int = 5
    is_binary: bool = True

    measure = staticmethod(returned_value)

    def least(self, request: Request) -> int:
        return CALLS[request.number % len(CALLS)]

    def draft(self, request: Request, functions: int) -> Draft:
        depth, generator = CALLS[request.number % len(CALLS)], request.random(self.name)
        names = generator.sample(range(1, 2 * functions + 1), functions)
        # function i calls one of the next layer, if there is one
        layers = [names[first::depth] for first in range(depth)]
        made: dict[int, tuple[int | None, int]] = {}
        for layer, below in zip(layers, [*layers[1:], None]):
            for name in layer:
                made[name] = None if below is None else generator.choice(below), generator.randint(-12, 17)
        first, value = generator.choice(layers[0]), generator.randint(-10, 10)
        call, answer = f"func_{first}({value})", value
        called: int | None = first
        while called is not None:
            called, added = made[called]
            answer += added
        code = "\n".join(self.function(name, *made[name]) for name in sorted(made))
        asked = PROMPTS["code_run"]
        text = asked["prompt"].format(func=f"func_{first}", func_call=call, context=f"{MODULE}{code}")
        return Draft(text, asked["start"].format(func_call=call), (str(answer),))

    def function(self, name: int, called: int | None, added: int) -> str:
        value = "x" if called is None else f"func_{called}(x)"
        sum_ = f" {'+' if added > 0 else '-'} {abs(added)}" if added else ""
        return f"def func_{name}(x):\n    return {value}{sum_}\n"


INFINITEBENCH_TASKS = (
    DigitsTask("infinitebench_passkey", "Find it and memorize them.", "pass key", repeats=0, new_tokens=6),
    DigitsTask("number_string", "Find it.", "sequence of digits", repeats=5, new_tokens=12),
    KeyValueRetrieval(),
    MathFind(),
    CodeRun(),
)
