"""Questions whose answer takes two facts: the first says what the second is about."""

from __future__ import annotations

import random

from .facts import ANSWERS, Fact


HOPS = (
    ("The parcel for {who} was left with {name}.", "{name} lives in {answer}.", "In which town is {who}'s parcel?"),
    ("{who}'s teacher is {name}.", "In the summer, {name} works in {answer}.", "Where is {who}'s teacher in summer?"),
    ("The boat of {who} was sold to {name}.", "{name} comes from {answer}.", "Which town is {who}'s boat's buyer of?"),
)
WHO = ("Annika", "Bertil", "Cosima", "Darius", "Edwina", "Fabio")


def draw_hops(draw: random.Random, count: int = 3) -> tuple[list[Fact], list[tuple[str, int, int]]]:
    """Facts in the order in which they are told, and (question, number of the first fact, of the second).

    All chains are told with the same words and have different people, so that each distracts from the others.
    """
    first, second, question = draw.choice(HOPS)
    names, people = draw.sample(ANSWERS["name"], count), draw.sample(WHO, count)
    facts = [
        Fact(told.format(who=who, name=name, answer="{answer}"), "", kind="town")
        for who, name in zip(people, names)
        for told in (first, second)
    ]
    order = draw.sample(range(2 * count), 2 * count)
    asked = [
        (question.format(who=who), order.index(2 * chain), order.index(2 * chain + 1))
        for chain, who in enumerate(people)
    ]
    return [facts[number] for number in order], asked
