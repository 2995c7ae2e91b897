"""Stories of the bAbI tasks 1 to 3 (Weston et al., arXiv 1502.05698; github.com/facebookarchive/bAbI-tasks): people go
to places, take things and leave them, and a question needs one, two or three of the facts.

World, rules and the way questions come up are those of the published generator, sentences those of the released data.
What differs: people move as often as they take or leave something, and task 3 asks only for a move to a place where
the thing had not been before, so that there is one answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random


PLACES = ("bedroom", "kitchen", "garden", "hallway", "bathroom", "office")
PEOPLE = {"John": "kitchen", "Mary": "bedroom", "Sandra": "garden", "Daniel": "hallway"}
THINGS = {"apple": "kitchen", "football": "garden", "milk": "kitchen"}
GO = ("went to", "journeyed to", "travelled to", "moved to", "went back to")
TAKE = ("grabbed", "took", "got", "picked up")
LEAVE = ("dropped", "discarded", "put down", "left")
# Questions of a published story, each of which is a story of its own here
QUESTIONS = 5


@dataclass(frozen=True)
class Story:
    """Facts in order, and a question about them.

    Attributes:
        facts (`list[str]`): Sentences.
        question (`str`): What is asked.
        answer (`str`): A place.
        named (`str`, *optional*): The place that stands in the question.
    """

    facts: list[str]
    question: str
    answer: str
    named: str | None = None


@dataclass
class World:
    """Where everybody and everything is, and what a reader knows of it.

    Attributes:
        people (`dict[str, str]`): The place of every person.
        things (`dict[str, str]`): The place of every thing, or the person who holds it.
        seen (`dict[str, str]`): The place of every person who was told of.
        trail (`dict[str, list[str]]`): The places where a reader knows every thing to have been, in order. Whoever
            moves is told of, so the last one is where it is.
        facts (`list[str]`): What was told.
    """

    people: dict[str, str] = field(default_factory=lambda: dict(PEOPLE))
    things: dict[str, str] = field(default_factory=lambda: dict(THINGS))
    seen: dict[str, str] = field(default_factory=dict)
    trail: dict[str, list[str]] = field(default_factory=lambda: {thing: [] for thing in THINGS})
    facts: list[str] = field(default_factory=list)

    def go(self, generator: Random) -> None:
        """Somebody goes somewhere else, with everything in hand."""
        person = generator.choice(list(self.people))
        place = generator.choice([place for place in PLACES if place != self.people[person]])
        self.people[person] = self.seen[person] = place
        self.facts.append(f"{person} {generator.choice(GO)} the {place}.")
        for thing, where in self.things.items():
            if where == person:
                self._at(thing, place)

    def handle(self, generator: Random) -> None:
        """Somebody takes a thing that is there, or leaves one."""
        moves = [
            (person, thing)
            for person, place in self.people.items()
            for thing, where in self.things.items()
            if where in (person, place)
        ]
        if not moves:
            return
        person, thing = generator.choice(moves)
        takes = self.things[thing] != person
        there = generator.choice((" there", ""))
        self.facts.append(f"{person} {generator.choice(TAKE if takes else LEAVE)} the {thing}{there}.")
        self.things[thing] = person if takes else self.people[person]
        if person in self.seen:
            self._at(thing, self.seen[person])

    def _at(self, thing: str, place: str) -> None:
        if not self.trail[thing] or self.trail[thing][-1] != place:
            self.trail[thing].append(place)


def story(task: int, generator: Random) -> Story:
    """A story of task 1, 2 or 3, up to one of its five questions; those before it are left out.

    Args:
        task (`int`): How many facts an answer needs.
        generator (`Random`): Draws it.
    """
    world = World()
    wanted = generator.randint(1, QUESTIONS)
    asked = told = 0
    while True:
        if task == 1 or generator.random() < 0.5:
            world.go(generator)
        else:
            world.handle(generator)
        new = len(world.facts) - told
        if new < 2 or (task > 1 and (new < 3 or generator.random() < 0.5)):
            continue
        found = _ask(task, world, generator)
        if found is not None:
            asked, told = asked + 1, len(world.facts)
            if asked == wanted:
                return found


def _ask(task: int, world: World, generator: Random) -> Story | None:
    """A question that the facts answer, if there is one."""
    facts = list(world.facts)
    if task == 1:
        person = generator.choice(list(world.seen))
        return Story(facts, f"Where is {person}?", world.seen[person])
    trails = [(thing, trail) for thing, trail in world.trail.items() if (_moved(trail) if task == 3 else trail)]
    if not trails:
        return None
    thing, trail = generator.choice(trails)
    if task == 2:
        return Story(facts, f"Where is the {thing}?", trail[-1])
    return Story(facts, f"Where was the {thing} before the {trail[-1]}?", trail[-2], trail[-1])


def _moved(trail: list[str]) -> bool:
    """Whether there is a place before the last one, which was not on the trail earlier."""
    return len(trail) > 1 and trail[-1] not in trail[:-1]
