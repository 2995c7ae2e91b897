"""BABILong: stories have the answer that a reader of their sentences finds, stand in order in a text, and are scored
as published.
"""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from conftest import make_tiny_tokenizer
from refusal import refusal
from test_tasks import TEXT, source, text_of

from focus_peft.tasks import TASKS, Source
from focus_peft.tasks.babilong.stories import GO, LEAVE, PLACES, TAKE, Story, story
from focus_peft.tasks.babilong.task import hidden
from focus_peft.tasks.samples import split_sentences


SENTENCE = re.compile(rf"(\w+) ({'|'.join(GO + TAKE + LEAVE)}) the (\w+?)( there)?\.")


def read(told: Story) -> str:
    """The answer, from the sentences alone."""
    at: dict[str, str] = {}
    holder: dict[str, str] = {}
    trail: dict[str, list[str]] = {}
    for fact in told.facts:
        found = SENTENCE.fullmatch(fact)
        assert found is not None, fact
        person, verb, what, there = found.groups()
        if verb in GO:
            assert what in PLACES and at.get(person) != what and not there
            at[person] = what
            moved = [thing for thing, who in holder.items() if who == person]
        else:
            if verb in TAKE:
                assert what not in holder
                holder[what] = person
            else:
                assert holder.pop(what) == person
            moved = [what] if person in at else []
        for thing in moved:
            visited = trail.setdefault(thing, [])
            if visited[-1:] != [at[person]]:
                assert verb in GO or not visited, "whoever handles a thing is where it is"
                visited.append(at[person])
    where, what = re.fullmatch(r"Where (is|was) (?:the )?(\w+)(?: before the \w+)?\?", told.question).groups()  # type: ignore[union-attr]
    if where == "was":
        assert told.question.endswith(f"before the {told.named}?") and trail[what].count(str(told.named)) == 1
        return trail[what][trail[what].index(str(told.named)) - 1]
    return at[what] if what in at else trail[what][-1]


@pytest.mark.parametrize("task", [1, 2, 3])
def test_a_reader_of_the_sentences_finds_the_answer(task: int) -> None:
    stories = [story(task, Random(seed)) for seed in range(300)]
    for told in stories:
        assert read(told) == told.answer != told.named, told
        assert len(told.facts) in (2, 4, 6, 8, 10) if task == 1 else len(told.facts) > 2
    assert set(Counter(told.answer for told in stories)) == set(PLACES)
    assert len({tuple(told.facts) for told in stories}) == 300
    assert story(task, Random(7)) == stories[7]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_prompts_hide_the_story_in_order_in_the_text(number: int) -> None:
    task = TASKS[f"babilong_qa{number}"]
    for sample_number in range(4):
        told = story(number, source().random(task.name, sample_number))
        text = text_of(task.sample(source(), 9000, sample_number, 4))
        before, _, rest = text.partition("\n<context>\n")
        context, _, question = rest.partition("\n</context>\n")
        assert question == f"Question: {told.question}"
        assert before.startswith("I ") and before.count("<example>") == 2 and "Always return your answer" in before
        for fact in told.facts:
            place = context.index(fact)
            context = context[:place] + context[place:].replace(fact, "", 1)
        words = context.split()
        assert words == (f"{TEXT} " * 100).split()[: len(words)] and len(words) > 500
        short = task.sample(source(), 6000, sample_number, 4)
        assert short.references == (told.answer, *([told.named] if told.named else []))


def test_facts_stand_between_sentences_in_their_order() -> None:
    facts = [f"Fact {number}." for number in range(20)]
    sentences = split_sentences(TEXT)
    text = hidden(facts, sentences, Random(1))
    assert re.findall(r"Fact \d+\.", text) == facts
    assert re.sub(r" ?Fact \d+\.", "", text).strip() == TEXT
    starts = [hidden(["Fact."], sentences, Random(seed)).index("Fact.") for seed in range(200)]
    assert min(starts) == 0 and max(starts) == len(TEXT) + 1
    assert hidden(facts, [], Random(1)) == " ".join(facts)


@pytest.mark.parametrize(
    ("prediction", "references", "right"),
    [
        (" The most recent location of Mary is office.", ["office"], 1),
        ("OFFICE", ["office"], 1),
        ("office or kitchen", ["office"], 0),
        ("Somewhere. office", ["office"], 0),
        ("office<example> kitchen", ["office"], 1),
        ("Before the kitchen the apple was in the garden.", ["garden", "kitchen"], 1),
        ("Before the kitchen the apple was in the office.", ["garden", "kitchen"], 0),
        ("the kitchen", ["garden", "kitchen"], 0),
        ("", ["garden"], 0),
    ],
)
def test_an_answer_is_right_if_it_names_the_right_place_alone(
    prediction: str, references: list[str], right: int
) -> None:
    assert TASKS["babilong_qa1"].score(prediction, references) == right


def test_a_task_without_texts_is_refused() -> None:
    with refusal("`texts`", "empty"):
        TASKS["babilong_qa1"].sample(Source(make_tiny_tokenizer()), 9000, 0, 1)
    with refusal("`tokens`", "shortest"):
        TASKS["babilong_qa1"].sample(source(), 400, 0, 1)
