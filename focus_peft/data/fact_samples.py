"""Training in looking things up: made-up facts, hidden in real documents, and a question about one of them at the
end."""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerBase

from ..config import IGNORE
from .facts import Fact, draw_facts
from .mixture import Item, TablePart


ENDINGS = (".", "!", "?", "\n")
# The share of samples in which an excerpt of the document, of so many tokens, is repeated up to the document's length,
# so that a chunk learns to be silent however many others say the same
REPEATED = 0.2
EXCERPT = (8, 64)
# Draws of which one must fit into `max_tokens`
DRAWS = 20


class FactsPart:
    """Samples made from documents: one to eight facts each, of which one is asked for.

    Only the answer's tokens are labels, and `evidence` says where the document told them. In a fifth of the samples,
    the document is a short excerpt of it, repeated.

    Args:
        lender (`TablePart`): Documents to hide facts in; each gives one sample in a round, with other facts in every
            round.
        tokenizer: The model's.
        max_tokens (`int`): The end of a document that leaves no room for the facts is cut off, and so are facts for
            which there is no room.

    Raises:
        ValueError: if `max_tokens` leaves no room for any.
    """

    def __init__(self, lender: TablePart, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.lender, self.tokenizer, self.max_tokens = lender, tokenizer, max_tokens
        self._ends_sentence: dict[int, bool] = {}
        draw = random.Random(0)
        if all(self._draw(draw) is None for _ in range(DRAWS)):
            raise ValueError(
                f"`max_tokens` is {max_tokens}, which leaves no room for a made-up fact with its question and its "
                "answer; give more, or to the source 'synthetic:facts' a `max_tokens` of its own."
            )

    def __len__(self) -> int:
        return len(self.lender)

    def item(self, number: int, seed: int) -> Item:
        draw = random.Random(seed)
        while (drawn := self._draw(draw)) is None:
            pass
        asked, statements, question, room = drawn
        ids = self._document(number, room, draw)

        ends = [place for place in range(1, len(ids) + 1) if self._is_end(ids[place - 1])]
        places = ends or [*range(1, len(ids) + 1)]
        hidden = sorted((draw.choice(places), order) for order in range(len(statements)))
        begins: dict[int, int] = {}  # of each statement, where its value stands in the text
        shift = 0
        for place, order in hidden:
            told, value = statements[order]
            begins[order] = place + shift + value
            shift += len(told)
        for place, order in reversed(hidden):
            ids[place:place] = statements[order][0]

        before = [*ids, *question]
        answer, evidence = self._answer(asked, begins, len(before))
        labels = [IGNORE] * len(before) + answer
        return {"input_ids": [*before, *answer], "labels": labels, "evidence": evidence}

    def _draw(self, draw: random.Random) -> tuple[Fact, list[tuple[list[int], int]], list[int], int] | None:
        """(the fact that is asked for, the tokens of each statement and where its value begins among them, the tokens
        of the question, how many are left for the document); None if none are.
        """
        asked, *others = draw_facts(draw)
        question = self._ids(f"\n\n{asked.question}")
        # the longest answer there is; values are put into the order of the text later
        longest = sum(len(self._ids(f" {value} and")) for value in asked.values)
        room = self.max_tokens - len(question) - longest - 1
        statements = [self._statement(fact, which) for fact in (asked, *others) for which in range(len(fact.values))]
        most = min(self.max_tokens // 2, room - 1)
        while len(statements) > len(asked.values) and sum(len(ids) for ids, _ in statements) > most:
            statements.pop()
        room -= sum(len(ids) for ids, _ in statements)
        return (asked, statements, question, room) if room > 0 else None

    def _statement(self, fact: Fact, which: int) -> tuple[list[int], int]:
        before, after = fact.told[which].split("{value}")
        told = self._ids(f" {before}".rstrip(" "))
        return told + self._value(fact.values[which]) + self._ids(after), len(told)

    def _answer(self, fact: Fact, begins: dict[int, int], first: int) -> tuple[list[int], list[tuple[int, int]]]:
        """An answer that begins at the place `first`, and its evidence: for each of its tokens, where the document
        tells it.

        What introduces a value has the place where that begins, and the first token of the answer all of these.
        """
        order = sorted(range(len(fact.values)), key=lambda which: begins[which])
        answer: list[int] = []
        evidence = []
        for number, which in enumerate(order):
            if number:
                link = self._ids(" and" if number == len(order) - 1 else ",")
                evidence += [(first + len(answer) + place, begins[which]) for place in range(len(link))]
                answer += link
            value = self._value(fact.values[which])
            evidence += [(first + len(answer) + place, begins[which] + place) for place in range(len(value))]
            answer += value
        evidence += [(first, begins[which]) for which in order[1:]]
        return answer + self._ids(".\n"), evidence

    def _value(self, value: str) -> list[int]:
        return self._ids(f" {value}")

    def _document(self, number: int, room: int, draw: random.Random) -> list[int]:
        ids = self.lender.item(number)["input_ids"][:room]
        if draw.random() < REPEATED:
            size = min(len(ids), draw.randint(*EXCERPT))
            start = draw.randint(0, len(ids) - size)
            ids = (ids[start : start + size] * -(-len(ids) // size))[: len(ids)]
        return list(ids)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _is_end(self, token: int) -> bool:
        """Whether a token ends a sentence or a line."""
        if token not in self._ends_sentence:
            self._ends_sentence[token] = str(self.tokenizer.decode([token])).endswith(ENDINGS)
        return self._ends_sentence[token]
