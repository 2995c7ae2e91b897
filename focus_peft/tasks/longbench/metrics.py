"""LongBench's metrics, as its `metrics.py` computes them: each of one answer against one reference, from 0 to 1.

ROUGE-L is that of the package rouge, and Chinese is cut into words by jieba, as published. The similarity of code is
the ratio that fuzzywuzzy gives with what LongBench installs, which is that of `difflib`, in whole percent.
"""

from __future__ import annotations

import difflib
import logging
import re
import string
from collections import Counter
from collections.abc import Sequence

from ..records import needed


CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､"
    "、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
DROPPED = str.maketrans("", "", string.punctuation)
DROPPED_IN_CHINESE = str.maketrans("", "", string.punctuation + CHINESE_PUNCTUATION)


def english_words(text: str) -> list[str]:
    """In lower case, without punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(DROPPED)).split()


def chinese_text(text: str) -> str:
    """In lower case, without punctuation and spaces."""
    return "".join(text.lower().translate(DROPPED_IN_CHINESE).split())


def chinese_words(text: str) -> list[str]:
    """As jieba cuts them."""
    jieba = needed("jieba", "Cutting Chinese into words")
    jieba.setLogLevel(logging.WARNING)  # it says that it reads its dictionary
    return list(jieba.cut(text, cut_all=False))


def f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """The harmonic mean of precision and recall, over words (or characters) in any order."""
    same = sum((Counter(prediction) & Counter(reference)).values())
    if not same:
        return 0.0
    precision, recall = same / len(prediction), same / len(reference)
    return 2 * precision * recall / (precision + recall)


def english_f1(prediction: str, reference: str) -> float:
    return f1(english_words(prediction), english_words(reference))


def chinese_f1(prediction: str, reference: str) -> float:
    """Over jieba's words; punctuation is dropped after the cut."""
    words = ([chinese_text(word) for word in chinese_words(text)] for text in (prediction, reference))
    return f1(*([word for word in found if word] for found in words))


def rouge_l(prediction: str, reference: str) -> float:
    """0 where the package rouge has no answer: for texts without a word."""
    rouge = needed("rouge", "ROUGE-L")
    try:
        return float(rouge.Rouge().get_scores([prediction], [reference], avg=True)["rouge-l"]["f"])
    except (ValueError, RecursionError):  # the published code catches everything
        return 0.0


def chinese_rouge_l(prediction: str, reference: str) -> float:
    """Over jieba's words."""
    return rouge_l(" ".join(chinese_words(prediction)), " ".join(chinese_words(reference)))


def classification(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """1 / n if n classes are named in the answer, and the right one is among them.

    Names that are parts of the right one's do not count; the list is thinned while it is walked, as published, so one
    that follows a name that was dropped is kept.
    """
    named = [name for name in classes if name in prediction]
    for name in named:
        if name in reference and name != reference:
            named.remove(name)
    return 1 / len(named) if reference in named else 0.0


def share_of_numbers(prediction: str, right: str) -> float:
    """How many of the numbers in the answer are the right one."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, reference: str) -> float:
    return share_of_numbers(prediction, re.findall(r"Paragraph (\d+)", reference)[0])


def chinese_retrieval(prediction: str, reference: str) -> float:
    return share_of_numbers(prediction, re.findall(r"段落(\d+)", reference)[0])


def code_similarity(prediction: str, reference: str) -> float:
    """Of the first line that looks like code."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == reference:
        return 1.0
    return round(100 * difflib.SequenceMatcher(None, line, reference).ratio()) / 100


def first_line(prediction: str) -> str:
    """What is scored of answers to few-shot tasks, which go on with another example."""
    return prediction.lstrip("\n").split("\n")[0]
