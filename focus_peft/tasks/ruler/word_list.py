"""Common English adjectives and nouns, for keys and for lists of words.

RULER takes those of the package `wonderwords`; with its lists in `Source.words` these are not needed.
"""

from __future__ import annotations

from pathlib import Path


ADJECTIVES, NOUNS = (
    tuple(words.split()) for words in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split("\n\n")
)
COMPOUNDS = len(ADJECTIVES) * len(NOUNS)


def compound(number: int) -> str:
    """One of all pairs of an adjective and a noun, by its number."""
    return f"{ADJECTIVES[number % len(ADJECTIVES)]}-{NOUNS[number // len(ADJECTIVES)]}"
