"""LongBench's and InfiniteBench's metrics, held to examples that are worked out by hand."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest

from focus_peft.tasks import RECORD_TASKS
from focus_peft.tasks.infinitebench import metrics as infinite
from focus_peft.tasks.longbench import metrics as longbench


def longbench_score(task: str, prediction: str, *references: str, **more: Any) -> float:
    return RECORD_TASKS[f"longbench/{task}"].score(prediction, references, **more)  # type: ignore[call-arg]


def infinite_score(task: str, prediction: str, *references: str) -> float:
    return RECORD_TASKS[f"infinitebench/{task}"].score(prediction, references)


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        # keeper, was, orla, finn (no article): 2 common, precision 2/4, recall 2/2
        ("The keeper was Orla Finn.", ["Orla Finn"], 2 * 0.5 * 1 / 1.5),
        ("orla-finn", ["Orla Finn"], 0),  # punctuation goes first: one word
        ("a dog and a dog", ["dog dog dog"], 2 * (2 / 3) * (2 / 3) / (4 / 3)),  # dog, and, dog: each counts once
        ("", ["Orla"], 0),
        ("the", ["a"], 0),
        ("Finn", ["Orla Finn", "Finn!"], 1),  # the best reference counts
    ],
)
@pytest.mark.parametrize("benchmark_task", ["longbench/narrativeqa", "infinitebench/longbook_qa_eng"])
def test_f1_over_english_words(benchmark_task: str, prediction: str, references: list[str], score: float) -> None:
    assert RECORD_TASKS[benchmark_task].score(prediction, references) == pytest.approx(score)


def test_f1_over_chinese_words_and_characters() -> None:
    pytest.importorskip("jieba")
    # jieba: 我 / 来到 / 北京 / 清华大学 and 北京 / 清华大学 / 。, which is dropped
    # so 2 are common, precision is 2/4, recall 2/2
    assert longbench_score("multifieldqa_zh", "我来到北京清华大学", "北京清华大学。") == pytest.approx(2 / 3)
    # characters: 9 and 6, 6 common: precision 6/9, recall 6/6
    assert infinite_score("longbook_qa_chn", "我来到北京清华大学", "北京清华大学。") == pytest.approx(
        2 * (6 / 9) / (15 / 9)
    )
    assert longbench_score("multifieldqa_zh", "！", "北京") == infinite_score("longbook_qa_chn", "", "北京") == 0


def test_rouge_l() -> None:
    pytest.importorskip("rouge")
    # the longest common subsequence is "old lamp": precision 2/3, recall 2/5, so 2 · (4/15) / (16/15)
    score = longbench_score("gov_report", "old lamp stays", "keepers trim every old lamp")
    assert score == pytest.approx(0.5, abs=1e-7)
    assert longbench_score("qmsum", "old lamp stays", "x", "keepers trim every old lamp") == score
    for empty in ("", "...", "  "):
        assert longbench_score("multi_news", empty, "keepers") == 0
    # a few-shot answer ends with its line
    assert longbench_score("samsum", "\nold lamp stays\nDialogue: x", "keepers trim every old lamp") == score


def test_rouge_l_over_chinese_words() -> None:
    pytest.importorskip("rouge")
    pytest.importorskip("jieba")
    # 我 / 来到 / 北京 of 我 / 来到 / 北京 / 清华大学: precision 3/3, recall 3/4, so 2 · (3/4) / (7/4)
    for task in ("dureader", "vcsum"):
        assert longbench_score(task, "我来到北京", "我来到北京清华大学") == pytest.approx(6 / 7, abs=1e-7)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("City", "City", 1),
        ("City or Food", "City", 1 / 2),
        ("city", "City", 0),
        ("Food", "City", 0),
        (" City\nQuestion: What ?\nType: Food", "City", 1),  # its first line
        # City is a part of Large City, and does not count
        ("Large City", "Large City", 1),
        # Old is dropped, so that City, which comes next, is passed over and stays; as published
        ("Old City Hall", "Old City Hall", 1 / 2),
    ],
)
def test_classification(prediction: str, reference: str, score: float) -> None:
    classes = ["Old", "City", "Food", "Large City", "Old City Hall"]
    assert longbench_score("trec", prediction, reference, classes=classes) == score


def test_numbers_of_paragraphs() -> None:
    assert longbench_score("passage_count", "2, no, 3, or 2", "2") == pytest.approx(2 / 3)
    assert longbench_score("passage_count", "two", "2") == longbench_score("passage_count", "12", "2") == 0
    assert longbench_score("passage_retrieval_en", "Paragraph 2, not 12", "Paragraph 2") == 1 / 2
    assert longbench_score("passage_retrieval_zh", "段落2", "段落2") == 1


def test_similarity_of_code() -> None:
    # the first line without a comment or backticks
    assert longbench_score("lcc", "\n# light\n```python\n    lamp.light()\nx", "    lamp.light()") == 1
    # ab and d are common: 2 · 3 / 8
    assert longbench_score("repobench-p", "abxd", "abcd") == 0.75
    # a and c, 2 · 2 / 7 = 0.5714…, in whole percent
    assert longbench_score("lcc", "axc", "abbc") == 0.57
    assert longbench_score("lcc", "// x", "abc") == 0


def test_similarity_of_code_is_that_of_fuzzywuzzy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like python-Levenshtein, whose ratio is another
        fuzz: Any = pytest.importorskip("fuzzywuzzy.fuzz")
    if fuzz.SequenceMatcher.__module__ != "difflib":
        pytest.skip("fuzzywuzzy uses python-Levenshtein here")
    generator = random.Random(0)
    for _ in range(2000):
        one, other = ("".join(generator.choices("ab c().=", k=generator.randint(0, 30))) for _ in range(2))
        assert longbench.code_similarity(one, other) == fuzz.ratio(one, other) / 100


@pytest.mark.parametrize(
    ("task", "prediction", "references", "score"),
    [
        ("passkey", " 71432. 5", ["71432"], 1),
        ("number_string", "5, 2200012222", ["2200012222"], 0),
        ("kv_retrieval", '"91aa".', ["91aa"], 1),
        ("kv_retrieval", "91aab", ["91aa"], 0),
        # the last word
        ("code_run", "func_3(-7) is -2.", ["-2"], 1),
        ("code_run", "-2 I think", ["-2"], 0),
        ("code_run", "", ["-2"], 0),
        # the first number, without a sign
        ("math_find", " 68, 93", ["68"], 1),
        ("math_find", "-68", ["68"], 1),
        ("math_find", "68.5", ["68"], 0),
        ("math_find", "2.5 or", ["2.5"], 1),
        ("math_find", "2", ["2.0"], 1),
        ("math_find", "none", ["68"], 0),
        # 6 and 4 are right, 15 is not, and what follows is not looked at
        ("math_calc", "[6, 4, 15, 14]", ["6", "4", "14", "14"], 2 / 4),
        ("math_calc", "7, 4, 14", ["6", "4", "14"], 0),
        ("math_calc", "6", ["6", "4", "14"], 1 / 3),
        # one of the names, in any case
        ("longdialogue_qa_eng", "It is Orla.", ["ORLA", "FINN"], 1),
        ("longdialogue_qa_eng", "Tom", ["ORLA", "FINN"], 0),
        # the last letter that stands alone
        ("longbook_choice_eng", "A, no: B", ["Green", "B"], 1),
        ("longbook_choice_eng", "A, no: C", ["Green", "B"], 0),
        (
            "longbook_choice_eng",
            "B, no: A",
            ["Green", "B"],
            1,
        ),  # the last is wrong, and then the first character is right
        ("longbook_choice_eng", "Blue", ["Green", "B"], 1),  # the first character
        ("longbook_choice_eng", "Green", ["Green", "B"], 1),
        ("longbook_choice_eng", "the answer is: Green", ["Green", "B"], 1),
        ("longbook_choice_eng", "the answer is: Red", ["Green", "B"], 0),
        ("longbook_choice_eng", "it is AB then", ["Green", "B"], 0),
        ("longbook_choice_eng", "", ["Green", "B"], 0),
        ("code_debug", "B. Tower.light", ["Tower.light", "B"], 1),
        ("code_debug", "B, or C", ["Tower.light", "B"], 1),  # C comes last, but B stands first
        ("code_debug", "C, or B", ["Tower.light", "B"], 1),
        ("code_debug", "Tower.light crashes", ["Tower.light", "B"], 1),
        ("code_debug", "The correct option is: Tower.light", ["Tower.light", "B"], 1),
        ("code_debug", "The correct option is: Lamp.on", ["Tower.light", "B"], 0),
        ("code_debug", "I do not know", ["Tower.light", "B"], 0),
    ],
)
def test_infinitebenchs_metrics(task: str, prediction: str, references: list[str], score: float) -> None:
    assert infinite_score(task, prediction, *references) == pytest.approx(score)


def test_rouge_l_sum() -> None:
    pytest.importorskip("rouge_score")
    # sentences are lines. "the cat sat" shares "the" with the answer, "the dog ran" all; but the answer has one "the"
    # only: 3 words of
    # the reference's 6 and of the answer's 5, so 2 · (3/6) · (3/5) / (3/6 + 3/5)
    score = infinite_score("longbook_sum_eng", "the dog ran\na bird", "the cat sat\nthe dog ran")
    assert score == pytest.approx(6 / 11)
    assert infinite_score("longbook_sum_eng", "the dog ran\na bird", "x", "the cat sat\nthe dog ran") == score
    assert infinite_score("longbook_sum_eng", "", "the cat") == 0


def test_letters_are_those_of_the_first_line_that_has_one() -> None:
    assert infinite.last_letter("It is A or B\nC", "A-D") == "B"
    assert infinite.last_letter("ABC", "A-D") is None
