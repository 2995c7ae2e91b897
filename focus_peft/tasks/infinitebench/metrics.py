"""InfiniteBench's metrics, as its `src/compute_scores.py` computes them: of an answer against all references, from 0
to 1.

References are texts here, numbers included; those of multiple choice are the right option and its letter. Where the
published code fails with an error (a number with a fraction where an integer is asked for), the answer is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..longbench.metrics import chinese_text, english_words, f1
from ..records import needed


# What is set before a letter in answers to multiple choice
BEFORE_BUG = ("answer is:", "is:", "answer:", "correct option is:")
BEFORE_CHOICE = ("answer is:", "answer:", "answer is", "option is")


def returned_value(prediction: str, references: Sequence[str]) -> float:
    """Code.Run: whether the last word is the number."""
    words = spaced(prediction, "\n", ".", "`", "'", '"', ":").split()
    try:
        return float(bool(words) and int(words[-1]) == int(references[0]))
    except ValueError:
        return 0.0


def found_number(prediction: str, references: Sequence[str]) -> float:
    """Math.Find: whether the first number, without its sign, is the reference."""
    found, reference = re.search(r"\d+\.\d+|\d+", prediction), references[0]
    if found is None or ("." in found.group() and "." not in reference):
        return 0.0
    return float(float(found.group()) == float(reference))


def leading_values(prediction: str, references: Sequence[str]) -> float:
    """Math.Calc: the share of intermediate values that are right before the first that is wrong; signs do not
    count.
    """
    right = 0
    for found, reference in zip(re.findall(r"[0-9]+", prediction), references):
        if int(found) != int(reference):
            break
        right += 1
    return right / len(references)


def bug(prediction: str, references: Sequence[str]) -> float:
    """Code.Debug: whether the last capital from A to J in a line that stands alone, or what the answer starts with, is
    right."""
    function, letter = references
    prediction = prediction.strip()
    if last_letter(prediction, "A-J") == letter:
        return 1.0
    text = squeezed(spaced(prediction, "\n", "`", "'", '"', "-", "*", "Option", "option"))
    if text.startswith((letter, function)):
        return 1.0
    return after_prefix(text, BEFORE_BUG, (letter, function)) or 0.0


def choice(prediction: str, references: Sequence[str]) -> float:
    """En.MC: whether the last capital from A to D, the first character, what stands after "answer is", or the first
    word of such letters is right; the first of these that there is decides, but for the first, which only helps.
    """
    prediction = prediction.strip()
    if last_letter(prediction, "A-D") in references:
        return 1.0
    if not prediction:
        return 0.0
    if prediction[0] in "ABCD":
        return float(prediction[0] in references)
    if prediction in references:
        return 1.0
    text = squeezed(spaced(prediction, "\n", '"', "'", ".", ",", "?", "!", "{", "}"))
    decided = after_prefix(text, BEFORE_CHOICE, references)
    if decided is not None:
        return decided
    return float(next((word for word in text.split() if word in "ABCD"), None) in references)


def character(prediction: str, references: Sequence[str]) -> float:
    """En.Dia: whether one of the names stands in the answer, in any case."""
    return float(any(name.upper() in prediction.upper() for name in references))


def english_answer(prediction: str, references: Sequence[str]) -> float:
    """En.QA: F1 over words."""
    return max((f1(english_words(prediction), english_words(reference)) for reference in references), default=0.0)


def chinese_answer(prediction: str, references: Sequence[str]) -> float:
    """Zh.QA: F1 over characters."""
    return max((f1(chinese_text(prediction), chinese_text(reference)) for reference in references), default=0.0)


def summary(prediction: str, references: Sequence[str]) -> float:
    """En.Sum: ROUGE-L-Sum, whose sentences are lines, as the package rouge-score gives it."""
    scorer = needed("rouge_score.rouge_scorer", "ROUGE-L-Sum").RougeScorer(["rougeLsum"])
    return float(scorer.score_multi(references, prediction)["rougeLsum"].fmeasure)


def spaced(text: str, *parts: str) -> str:
    """With spaces in place of some parts."""
    for part in parts:
        text = text.replace(part, " ")
    return text


def squeezed(text: str) -> str:
    """With one space where there are several."""
    return re.sub(" +", " ", text)


def last_letter(text: str, letters: str) -> str | None:
    """Of the first line that has one: the last letter that is a word."""
    found = re.search(rf"\b[{letters}]\b(?!.*\b[{letters}]\b)", text)
    return None if found is None else found.group()


def after_prefix(text: str, prefixes: Sequence[str], wanted: Sequence[str]) -> float | None:
    """Whether something wanted stands a character after the first of the prefixes that is there; None without one."""
    for prefix in prefixes:
        place = text.find(prefix)
        if place >= 0:
            return float(text[place + len(prefix) + 1 :].startswith(tuple(wanted)))
    return None
