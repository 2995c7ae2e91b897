"""Facts that are told in a few words and asked for in others, and the texts that they are hidden in."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fact:
    """What is told, what is asked, and the answer.

    Attributes:
        told (`str`): A sentence with `{answer}` in it.
        question (`str`): It shares few words with that.
        alike (`str`): A sentence of the same form, with `{answer}` in it, that does not answer the question.
        kind (`str`): What the answer is: "number" or one of `ANSWERS`.
    """

    told: str
    question: str
    alike: str = ""
    kind: str = "number"


FACTS = (
    Fact(
        "Whoever wants to restart the boiler has to dial {answer} first.",
        "Which digits turn the heating on again?",
        "Whoever wants to order a taxi has to dial {answer} first.",
    ),
    Fact(
        "The courier only hands the parcel over to people who say {answer}.",
        "What number must I tell the postman?",
        "The guard only opens the gate to people who say {answer}.",
    ),
    Fact(
        "Grandma's old bicycle lock opens at {answer}.",
        "What is the combination for the bike?",
        "Grandma's old suitcase lock opens at {answer}.",
    ),
    Fact(
        "Our deep-sea probe stopped sending at a depth of {answer} millimeters.",
        "How far down did the robot get?",
        "Our weather balloon stopped sending at a height of {answer} millimeters.",
    ),
    Fact(
        "The museum paid {answer} crowns for the painting of the mill.",
        "What did the picture cost?",
        "The museum paid {answer} crowns for the statue of the queen.",
    ),
    Fact(
        "A beekeeper counted {answer} of them behind the church.",
        "How many insects live near the chapel?",
        "A shepherd counted {answer} of them behind the castle.",
    ),
    Fact(
        "They named the lighthouse keeper's dog {answer}.",
        "What is the pet at the coast called?",
        "They named the station master's son {answer}.",
        "name",
    ),
    Fact(
        "Only {answer} has a key to the wine cellar.",
        "Who can open the room with the bottles?",
        "Only {answer} has a key to the bell tower.",
        "name",
    ),
    Fact(
        "The soup was spoiled because the cook had put {answer} in it.",
        "Which ingredient ruined the dish?",
        "The tea was better because the nurse had put {answer} in it.",
        "food",
    ),
    Fact(
        "The treaty was signed on a boat near {answer}.",
        "Close to which town was the agreement made?",
        "The film was made on a farm near {answer}.",
        "town",
    ),
)
# Numbers that are asked for in the words that they are told in, which a small model can answer once it has read them
NUMBERS = tuple(
    Fact(f"{what} is {{answer}}.", f"What is {what[0].lower()}{what[1:]}?")
    for what in (
        "The combination of the lock on the garden shed",
        "The account number of the chess club",
        "The serial number of the green telescope",
        "The membership number of Captain Harrow",
        "The code of the elevator in the opera house",
        "The catalog number of the bronze horse",
        "The telephone number of the lighthouse",
        "The registration number of the fishing boat",
    )
)
# What has several values, each told in a sentence of its own
LISTS = tuple(
    Fact(f"One of the {what} is {{answer}}.", f"What are all the {what}?")
    for what in ("numbers on the list of the chess club", "codes of the opera house", "licenses of Captain Harrow")
)
ANSWERS = {
    "name": ("Bramble", "Ottoline", "Fergus", "Mirabel", "Tobias", "Wilhelmina"),
    "food": ("cinnamon", "vinegar", "licorice", "horseradish", "marzipan", "nutmeg"),
    "town": ("Trieste", "Bergen", "Galway", "Ravenna", "Tromso", "Cadiz"),
}
NAMES = ("Ann", "Boris", "Carla", "Dmitri", "Elif", "Frank")
THINGS = [
    "apples", "bricks", "candles", "drums", "eggs", "flutes", "gloves", "hammers", "jars", "kites", "lamps", "mirrors",
    "nails", "oars", "plates",
]  # fmt: skip
DOINGS = ["paint", "carry", "count", "clean", "sell", "weigh", "borrow", "mend", "hide", "sort", "wrap", "dry"]
PLACES = [
    "attic", "barn", "cellar", "garden", "harbor", "kitchen", "library", "market", "office", "station", "tower",
    "yard",
]  # fmt: skip


def source_code(draw: random.Random) -> Iterator[str]:
    """Lines of the standard library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    while True:
        lines = draw.choice(files).read_text(encoding="utf-8", errors="ignore").splitlines()
        yield from lines[: draw.randint(50, 400)]


def dialogue(draw: random.Random) -> Iterator[str]:
    while True:
        thing, doing, place = draw.choice(THINGS), draw.choice(DOINGS), draw.choice(PLACES)
        yield f"{draw.choice(NAMES)}: Did you {doing} the {draw.randint(2, 99)} {thing} in the {place}?"
        yield f"{draw.choice(NAMES)}: No, I had to {draw.choice(DOINGS)} the {draw.choice(THINGS)} first."


def todo_list(draw: random.Random) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{number}. {draw.choice(DOINGS)} {draw.randint(2, 999)} {draw.choice(THINGS)} ({draw.choice(PLACES)})"


def table(draw: random.Random) -> Iterator[str]:
    yield "| who | what | amount | where |"
    while True:
        cells = draw.choice(NAMES), draw.choice(THINGS), str(draw.randint(100, 999999)), draw.choice(PLACES)
        yield f"| {' | '.join(cells)} |"


TEXTS: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "source code": source_code,
    "dialogue": dialogue,
    "list": todo_list,
    "table": table,
}
# How a fact stands among the other lines
HIDDEN = {"source code": "# {fact}", "dialogue": "Boris: {fact}", "list": "0. {fact}", "table": "| Elif | {fact} | |"}

# Tokens at the end of a text that hold no fact, so that none is in a local window
TAIL = 300


@dataclass
class Document:
    """A text with facts in it.

    Attributes:
        text (`str`): Its kind.
        ids (`list[int]`): All of its tokens; no fact is among the last `TAIL`.
        places (`list[tuple[int, int]]`): Of each fact its first token, and the one behind its last.
        questions (`list[list[int]]`): What asks for each fact.
        answers (`list[str]`): What is right.
    """

    text: str
    ids: list[int]
    places: list[tuple[int, int]]
    questions: list[list[int]]
    answers: list[str]


def make_document(
    tokenizer: Any, text: str, tokens: int, facts: Sequence[Fact], seed: int, alike: bool = False
) -> Document:
    """A text of exactly `tokens` tokens, with the facts at places that the seed draws.

    Args:
        tokenizer: The model's.
        text (`str`): Its kind, one of `TEXTS`.
        tokens (`int`): Its length.
        facts (`Sequence[Fact]`): What is hidden in it.
        seed (`int`): Draws everything.
        alike (`bool`): Hide the sentence that is like each fact, too.
    """

    def ids_of(words: str) -> list[int]:
        return list(tokenizer(words, add_special_tokens=False, verbose=False).input_ids)

    draw = random.Random(f"{text} {tokens} {seed}")
    answers = [_answer(fact, draw) for fact in facts]
    sentences = [fact.told.format(answer=answer) for fact, answer in zip(facts, answers)]
    others = random.Random(f"{seed} alike")
    if alike:
        sentences += [fact.alike.format(answer=_answer(fact, others)) for fact in facts]
    told = [ids_of(f"\n{HIDDEN[text].format(fact=sentence)}\n") for sentence in sentences]
    room = tokens - sum(map(len, told))
    around: list[int] = []
    for line in TEXTS[text](draw):
        around += ids_of(f"{line}\n")
        if len(around) >= room:
            break
    cuts = sorted(draw.randrange(room - TAIL) for _ in told)
    order = list(range(len(told))) if not alike else others.sample(range(len(told)), len(told))
    ids: list[int] = []
    places = {}
    for begin, end, which in zip([0, *cuts], cuts, order):
        ids += around[begin:end] + told[which]
        places[which] = (len(ids) - len(told[which]), len(ids))
    ids += around[cuts[-1] : room]
    questions = [ids_of(f"\n\nQuestion: {fact.question}\nAnswer:") for fact in facts]
    return Document(text, ids, [places[which] for which in range(len(facts))], questions, answers)


def _answer(fact: Fact, draw: random.Random) -> str:
    return str(draw.randint(100000, 999999)) if fact.kind == "number" else draw.choice(ANSWERS[fact.kind])
