"""Training in looking things up: made-up facts, hidden in real documents, and a question about one of them at the end.

No wording is that of the benchmarks that adapters are measured on (the passkey prompt, RULER), so these stay unseen.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..config import IGNORE
from .mixture import Item, TablePart


NAMES = (
    "Adela", "Amir", "Beatriz", "Bruno", "Celeste", "Chidi", "Dagmar", "Dmitri", "Elif", "Emeka", "Farah", "Florian",
    "Greta", "Gustavo", "Hana", "Henrik", "Ines", "Ivo", "Jamila", "Jonas", "Keiko", "Kofi", "Leonie", "Luca", "Malik",
    "Mirela", "Nadia", "Niels", "Odile", "Omar", "Paloma", "Pavel", "Quentin", "Rania", "Rasmus", "Saskia", "Selim",
    "Tamara", "Tomas", "Ulrike", "Umar", "Viktor", "Violeta", "Wanda", "Wim", "Xenia", "Yara", "Yusuf", "Zora",
    "Zoltan",
)  # fmt: skip
# What is hidden, by the kind of its value
NOUNS = {
    "number": (
        "locker code", "badge number", "parcel number", "seat number", "room number", "account number",
        "meter reading", "ticket number", "invoice number", "door code",
    ),
    "word": (
        "boat's name", "favourite dish", "horse's name", "home village", "nickname", "stage name",
        "team's name", "cottage's name", "username", "favourite song",
    ),
    "hex": (
        "device id", "order hash", "router key", "licence string", "commit id", "session token", "sensor id",
        "file checksum", "voucher", "firmware tag",
    ),
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
)
QUESTIONS = (
    "Question: What is {name}'s {noun}?\nAnswer:",
    "Which value does the text give for {name}'s {noun}? It is",
    "Q: Tell me {name}'s {noun}.\nA:",
    "According to the text above, {name}'s {noun} is",
    "Looking up {name}'s {noun} in the text gives",
    "{name} asks: what does the text say my {noun} is?\nReply:",
)
SYLLABLES = (
    "ba", "be", "bo", "da", "de", "do", "fa", "fi", "fo", "ga", "go", "ka", "ke", "ki", "la", "le", "lo", "ma", "mi",
    "mo", "na", "ne", "no", "pa", "pi", "ra", "ri", "ro", "sa", "se", "so", "ta", "ti", "to", "va", "vi", "za", "zo",
)  # fmt: skip
ENDINGS = (".", "!", "?", "\n")
# How many facts a sample has: mostly a few, at times many, so that other chunks hold others that look alike
COUNTS = (1, 1, 2, 2, 3, 4, 6, 8)
# The share of samples whose facts are about one noun; and of those in which an excerpt of the document, of so many
# tokens, is repeated up to the document's length, so that a chunk learns to be silent however many others say the same
SAME_NOUN, REPEATED = 0.3, 0.2
EXCERPT = (8, 64)
# The share of numbers and hex strings that are made of two or three digits: where one digit follows itself, or two
# others in turn, the last one alone does not say how to go on
FEW_DIGITS = 0.4


class FactsPart:
    """Samples made from documents: one to eight facts each, of which one is asked for.

    Only the answer's tokens are labels. In a fifth of the samples, the document is a short excerpt of it, repeated.

    Args:
        lender (`TablePart`): Documents to hide facts in; each gives one sample in a round, with other facts in every
            round.
        tokenizer: The model's.
        max_tokens (`int`): The end of a document that leaves no room for the facts is cut off.
    """

    def __init__(self, lender: TablePart, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.lender, self.tokenizer, self.max_tokens = lender, tokenizer, max_tokens
        self._ends_sentence: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self.lender)

    def lengths(self) -> np.ndarray:
        return self.lender.lengths()

    def item(self, number: int, seed: int) -> Item:
        draw = random.Random(seed)
        asked, *others = draw_facts(draw)
        statements = [self._ids(f" {draw.choice(STATEMENTS).format(**fact)}") for fact in (asked, *others)]
        while len(statements) > 1 and sum(map(len, statements)) > self.max_tokens // 2:
            statements.pop()
        question = self._ids(f"\n\n{draw.choice(QUESTIONS).format(**asked)}")
        answer = self._ids(f" {asked['value']}.\n")
        room = self.max_tokens - sum(map(len, [*statements, question, answer]))
        ids = self.lender.item(number)["input_ids"][: max(1, room)]
        if draw.random() < REPEATED:
            size = min(len(ids), draw.randint(*EXCERPT))
            start = draw.randint(0, len(ids) - size)
            ids = (ids[start : start + size] * -(-len(ids) // size))[: len(ids)]

        places = [place for place in range(1, len(ids) + 1) if self._is_end(ids[place - 1])] or [
            *range(1, len(ids) + 1)
        ]
        hidden = sorted((draw.choice(places), order) for order in range(len(statements)))
        for place, order in reversed(hidden):
            ids[place:place] = statements[order]
        before = [*ids, *question]
        return {"input_ids": [*before, *answer], "labels": [IGNORE] * len(before) + answer}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _is_end(self, token: int) -> bool:
        """Whether a token ends a sentence or a line."""
        if token not in self._ends_sentence:
            self._ends_sentence[token] = str(self.tokenizer.decode([token])).endswith(ENDINGS)
        return self._ends_sentence[token]


def draw_facts(draw: random.Random) -> list[dict[str, Any]]:
    """One to eight facts (`name`, `noun`, `value`), no two of one name; at times all of one noun."""
    kinds = {noun: kind for kind, nouns in sorted(NOUNS.items()) for noun in nouns}
    alike = draw.choice(sorted(kinds)) if draw.random() < SAME_NOUN else None
    facts = []
    for name in draw.sample(NAMES, draw.choice(COUNTS)):
        noun = alike or draw.choice(NOUNS[draw.choice(sorted(NOUNS))])
        facts.append({"name": name, "noun": noun, "value": _value(kinds[noun], draw)})
    return facts


def _value(kind: str, draw: random.Random) -> str:
    if kind == "number":
        return str(draw.randint(1, 9)) + _digits("0123456789", draw.randint(2, 7), draw)
    if kind == "hex":
        return _digits("0123456789abcdef", draw.randint(6, 12), draw)
    return "".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))).capitalize()


def _digits(known: str, count: int, draw: random.Random) -> str:
    few = draw.random() < FEW_DIGITS
    return "".join(draw.choices(draw.sample(known, draw.randint(2, 3)) if few else known, k=count))
