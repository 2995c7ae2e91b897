"""Made-up facts: what is told, what is asked, and the values that answer it.

No wording is that of the benchmarks that adapters are measured on (the passkey prompt, RULER, `recipes/readings`), so
these stay unseen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


NAMES = (
    "Adela", "Amir", "Beatriz", "Bruno", "Celeste", "Chidi", "Dagmar", "Dmitri", "Elif", "Emeka", "Farah", "Florian",
    "Greta", "Gustavo", "Hana", "Henrik", "Ines", "Ivo", "Jamila", "Jonas", "Keiko", "Kofi", "Leonie", "Luca", "Malik",
    "Mirela", "Nadia", "Niels", "Odile", "Omar", "Paloma", "Pavel", "Quentin", "Rania", "Rasmus", "Saskia", "Selim",
    "Tamara", "Tomas", "Ulrike", "Umar", "Viktor", "Violeta", "Wanda", "Wim", "Xenia", "Yara", "Yusuf", "Zora",
    "Zoltan",
)  # fmt: skip
# What is told, by the kind of its value, and other words for it
NOUNS = {
    "number": {
        "locker code": "the digits that open the cabinet of {name}",
        "badge number": "the figure on the card that {name} wears",
        "parcel number": "the reference of what the mail brings to {name}",
        "seat number": "the place where {name} sits",
        "room number": "the door behind which {name} stays",
        "account number": "where money for {name} has to be sent",
        "meter reading": "how much {name} has used up",
        "ticket number": "what is printed on the pass that {name} bought",
        "invoice number": "which bill {name} got",
        "door code": "what {name} types to get in",
    },
    "word": {
        "boat's name": "what is painted on the ship of {name}",
        "favourite dish": "the meal that {name} likes best",
        "horse's name": "what the animal that {name} rides is called",
        "home village": "the place where {name} grew up",
        "nickname": "what friends call {name}",
        "stage name": "how {name} is announced to the audience",
        "team's name": "the side that {name} plays for",
        "cottage's name": "what the little house of {name} is called",
        "username": "how {name} logs in",
        "favourite song": "the tune that {name} loves most",
    },
    "hex": {
        "device id": "how the machine of {name} identifies itself",
        "order hash": "the digest of what {name} bought",
        "router key": "what protects the network of {name}",
        "licence string": "what {name} enters to unlock the program",
        "commit id": "the change that {name} made",
        "session token": "what the server gave {name} at login",
        "sensor id": "which probe belongs to {name}",
        "file checksum": "what proves that the data of {name} are intact",
        "voucher": "what {name} can pay with instead of money",
        "firmware tag": "the version that runs on the gadget of {name}",
    },
}  # fmt: skip
STATEMENTS = (
    "{name}'s {noun} is {value}.",
    "By the way, {name}'s {noun} is {value}.",
    "It is on file that {name}'s {noun} is {value}.",
    "A note in the margin says that {name}'s {noun} is {value}.",
    "Somebody wrote down {value} as {name}'s {noun}.",
    "For {name}, the entry under {noun} reads {value}.",
    "According to the list, {value} is {name}'s {noun}.",
    "({name}, {noun}: {value})",
    "# {name}, {noun}: {value}",
    "| {name} | {noun} | {value} |",
    "- {noun} of {name}: {value}",
    '{name}: "My {noun} is {value}."',
)
# Facts about nobody, asked for in other words than they are told in
SCENES = (
    ("The ferry to the island leaves from pier {value}.", "Where do passengers board the boat?", "number"),
    ("To silence the alarm in the warehouse, press {value}.", "How does one stop the siren?", "number"),
    ("The bridge carries at most {value} kilograms.", "What is the heaviest load that may cross?", "number"),
    ("The new engine costs {value} dollars.", "What must be paid for the motor?", "number"),
    ("The choir sold {value} tickets for its last evening.", "How many people came to hear the singers?", "number"),
    ("Line {value} runs through the night.", "Which bus can be taken after midnight?", "number"),
    (
        "The doctor can be reached under {value} on Sundays.",
        "Whom to call when somebody is ill at weekends?",
        "number",
    ),
    ("Miners dug {value} meters into the mountain.", "How long is the tunnel in the rock?", "number"),
    ("The winner of the race came from {value}.", "What is the home of the fastest runner?", "word"),
    ("The queen's portrait was painted by {value}.", "Which artist made the picture of the ruler?", "word"),
    ("The old king lies buried in {value}.", "Where is the grave of the monarch?", "word"),
    ("The river is called {value} by those who live on it.", "What do locals say for the stream?", "word"),
    ("The bakery's secret spice comes from {value}.", "Where does the flavor of the bread have its origin?", "word"),
    ("Only {value} knows how to repair the clock of the tower.", "Who can fix what shows the hours?", "word"),
    ("The expedition's cook was named {value}.", "Who prepared the meals of the explorers?", "word"),
    ("The backup is encrypted with {value}.", "Which key makes the saved copy readable?", "hex"),
    ("The release was built from revision {value}.", "Which state of the sources was shipped?", "hex"),
    ("The crash report is filed under {value}.", "Where are the details of the failure?", "hex"),
)
QUESTIONS = (
    "Question: What is {asked}?\nAnswer:",
    "Which value does the text give for {asked}? It is",
    "Q: Tell me {asked}.\nA:",
    "According to the text above, {asked} is",
    "Looking up {asked} in the text gives",
    "Somebody wants to know {asked}.\nReply:",
)
# For facts with several values
QUESTIONS_FOR_ALL = (
    "Question: Which values does the text give for {asked}?\nAnswer:",
    "Q: List all that the text says of {asked}.\nA:",
    "Looking up every value of {asked} in the text gives",
)
SCENE_QUESTIONS = ("Question: {asked}\nAnswer:", "Q: {asked}\nA:", "{asked} According to the text:")
SYLLABLES = (
    "ba", "be", "bo", "da", "de", "do", "fa", "fi", "fo", "ga", "go", "ka", "ke", "ki", "la", "le", "lo", "ma", "mi",
    "mo", "na", "ne", "no", "pa", "pi", "ra", "ri", "ro", "sa", "se", "so", "ta", "ti", "to", "va", "vi", "za", "zo",
)  # fmt: skip
# How many facts a sample has: mostly a few, at times many, so that other chunks hold others that look alike
COUNTS = (1, 1, 2, 2, 3, 4, 6, 8)
# How many values the fact has that is asked for
VALUES = (1, 1, 1, 1, 2, 3, 4)
# Shares of samples: all facts about one noun; all about one person; the fact asked for is a scene; and, if it is none,
# it is asked for in other words
SAME_NOUN, SAME_NAME, SCENE, OTHER_WORDS = 0.3, 0.15, 0.2, 0.4
# The share of numbers and hex strings that are made of two or three digits: where one digit follows itself, or two
# others in turn, the last one alone does not say how to go on
FEW_DIGITS = 0.4


@dataclass
class Fact:
    """Something that texts tell, a statement for each of its values.

    Attributes:
        told (`list[str]`): What is said of each value, with `{value}` in its place.
        values (`list[str]`): All different.
        question (`str`): Asks for all of them, and ends where the answer begins.
    """

    told: list[str]
    values: list[str]
    question: str


def draw_facts(draw: random.Random) -> list[Fact]:
    """One to eight facts, the first of which is asked for. Only that one may have several values."""
    count, values = draw.choice(COUNTS), draw.choice(VALUES)
    kinds = {noun: kind for kind, nouns in NOUNS.items() for noun in nouns}
    names = draw.sample(NAMES, count)
    nouns = [draw.choice(sorted(NOUNS[draw.choice(sorted(NOUNS))])) for _ in names]
    alike = draw.random()
    if alike < SAME_NOUN:
        nouns = nouns[:1] * count
    elif alike < SAME_NOUN + SAME_NAME:
        names, nouns = names[:1] * count, draw.sample(sorted(kinds), count)
    facts = []
    for number, (name, noun) in enumerate(zip(names, nouns)):
        facts.append(_fact(name, noun, kinds[noun], 1 if number else values, draw))
    if draw.random() < SCENE:
        scenes = draw.sample(SCENES, count)
        facts[0] = _scene(scenes[0], draw)
        if alike < SAME_NOUN:  # all are scenes
            facts = [_scene(scene, draw) for scene in scenes]
    return facts


def _fact(name: str, noun: str, kind: str, count: int, draw: random.Random) -> Fact:
    told = [draw.choice(STATEMENTS).replace("{name}", name).replace("{noun}", noun) for _ in range(count)]
    asked = NOUNS[kind][noun].format(name=name) if draw.random() < OTHER_WORDS else f"{name}'s {noun}"
    question = draw.choice(QUESTIONS if count == 1 else QUESTIONS_FOR_ALL).format(asked=asked)
    return Fact(told, _values(kind, count, draw), question)


def _scene(scene: tuple[str, str, str], draw: random.Random) -> Fact:
    told, asked, kind = scene
    return Fact([told], _values(kind, 1, draw), draw.choice(SCENE_QUESTIONS).format(asked=asked))


def _values(kind: str, count: int, draw: random.Random) -> list[str]:
    values: dict[str, None] = {}
    while len(values) < count:
        values[_value(kind, draw)] = None
    return list(values)


def _value(kind: str, draw: random.Random) -> str:
    if kind == "number":
        return str(draw.randint(1, 9)) + _digits("0123456789", draw.randint(2, 7), draw)
    if kind == "hex":
        return _digits("0123456789abcdef", draw.randint(6, 12), draw)
    return "".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))).capitalize()


def _digits(known: str, count: int, draw: random.Random) -> str:
    few = draw.random() < FEW_DIGITS
    return "".join(draw.choices(draw.sample(known, draw.randint(2, 3)) if few else known, k=count))
