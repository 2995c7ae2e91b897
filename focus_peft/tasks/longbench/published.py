"""LongBench's 21 tasks (Bai et al., arXiv 2308.14508; github.com/THUDM/LongBench).

Prompts are those of its `config/dataset2prompt.json` to the letter (misprints too), lengths of answers those of `dataset2maxlen.json`,
metrics those of `metrics.py` and `eval.py`; few-shot and code tasks are never put into a chat template, as in `pred.py`. What
differs: an answer to samsum goes on to its end, where `pred.py` stops at a line break and forbids one as the first token; what is
scored is its first line in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..longbench import metrics
from ..records import Benchmark, RecordTask, best
from ..samples import Draft, Sample


LONGBENCH = Benchmark("longbench", "LongBench", "THUDM/LongBench", archive="data.zip")

STORY = (
    "You are given a story, which can be either a novel or a movie script, and a question. Answer the question asconcisely as you "
    "can, using a single phrase if possible. Do not provide any explanation.\n\nStory: {context}\n\nNow, answer the question based on "
    "the story asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:"
)
ARTICLE = (
    "You are given a scientific article and a question. Answer the question as concisely as you can, using a single phrase or "
    'sentence if possible. If the question cannot be answered based on the information in the article, write "unanswerable". If the '
    'question is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\nArticle: {context}\n\n '
    "Answer the question based on the above article as concisely as you can, using a single phrase or sentence if possible. If the "
    'question cannot be answered based on the information in the article, write "unanswerable". If the question is a yes/no question, '
    'answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:'
)
FIELDS_EN = (
    "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based on the above text, only give "
    "me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:"
)
FIELDS_ZH = "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答："
PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\nThe following are "
    "given passages.\n{context}\n\nAnswer the question based on the given passages. Only give me the answer and do not output any "
    "other words.\n\nQuestion: {input}\nAnswer:"
)
DUREADER = (
    "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n问题：{input}\n回答："
)
REPORT = (
    "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n{context}\n\nNow, write a "
    "one-page summary of the report.\n\nSummary:"
)
MEETING = (
    "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one or more sentences."
    "\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\n"
    "Query: {input}\nAnswer:"
)
NEWS = (
    "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\nNow, write a one-page summary "
    "of all the news.\n\nSummary:"
)
MEETING_ZH = "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n会议总结："
QUESTION_TYPES = (
    "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n{input}"
)
TRIVIA = (
    "Answer the question based on the given passage. Only give me the answer and do not output any other words. The following are some "
    "examples.\n\n{context}\n\n{input}"
)
DIALOGUE = (
    "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n{input}"
)
NEWS_TYPES = "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}"
COUNT = (
    "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read these paragraphs and "
    "determine how many unique paragraphs there are after removing duplicates. In other words, how many non-repeating paragraphs are "
    "there in total?\n\n{context}\n\nPlease enter the final count of unique paragraphs after removing duplicates. The output format "
    "should only contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: "
)
RETRIEVAL_EN = (
    "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract is from.\n\n"
    "{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is from. The "
    'answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: '
)
RETRIEVAL_ZH = (
    "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n下面是一个摘要\n\n{input}\n\n"
    '请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：'
)
CODE = "Please complete the code given below. \n{context}Next line of code:\n"
CODE_REPOSITORY = "Please complete the code given below. \n{context}{input}Next line of code:\n"


@dataclass(frozen=True)
class LongBenchTask(RecordTask):
    """One of the tasks.

    Attributes:
        measure (`Callable`): The score of an answer against one reference; the best of all counts.
        prompt (`str`): What `{context}` and `{input}` of a record are put into.
        chat (`bool`): Whether it may be put into a chat template.
        first_line (`bool`): Score only the answer's first line.
    """

    measure: Callable[..., float] = metrics.english_f1
    prompt: str = ""
    chat: bool = True
    first_line: bool = False

    benchmark: ClassVar[Benchmark] = LONGBENCH
    fields: ClassVar[tuple[str, ...]] = ("input", "context", "answers")

    def draft(self, record: Mapping[str, Any]) -> Draft:
        text = self.prompt.format(context=record["context"], input=record["input"])
        return Draft(text, "", tuple(record["answers"]), chat=self.chat)

    def score(self, prediction: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
        if self.first_line:
            prediction = metrics.first_line(prediction)
        more = {"classes": classes} if self.measure is metrics.classification else {}
        return best([self.measure(prediction, reference, **more) for reference in references])

    def score_sample(self, prediction: str, sample: Sample) -> float:
        return self.score(prediction, sample.references, sample.classes)


# A metric: its name, the function, and the packages that it needs
Metric = tuple[str, Callable[..., float], tuple[str, ...]]
F1: Metric = ("F1", metrics.english_f1, ())
F1_ZH: Metric = ("F1", metrics.chinese_f1, ("jieba",))
ROUGE: Metric = ("ROUGE-L", metrics.rouge_l, ("rouge",))
ROUGE_ZH: Metric = ("ROUGE-L", metrics.chinese_rouge_l, ("jieba", "rouge"))
CLASSIFICATION: Metric = ("classification score", metrics.classification, ())
SIMILARITY: Metric = ("edit similarity", metrics.code_similarity, ())


def _task(name: str, category: str, language: str, tokens: int, metric: Metric, prompt: str, few: bool = False) -> Any:
    """`few`: few-shot, so that answers go on with another example."""
    title, measure, packages = metric
    return LongBenchTask(
        name=f"{LONGBENCH.name}/{name}",
        category=category,
        language=language,
        new_tokens=tokens,
        metric=title,
        packages=packages,
        measure=measure,
        prompt=prompt,
        chat=not few and category != "code",
        first_line=few,
    )


LONGBENCH_TASKS: tuple[LongBenchTask, ...] = (
    _task("narrativeqa", "single-document QA", "en", 128, F1, STORY),
    _task("qasper", "single-document QA", "en", 128, F1, ARTICLE),
    _task("multifieldqa_en", "single-document QA", "en", 64, F1, FIELDS_EN),
    _task("multifieldqa_zh", "single-document QA", "zh", 64, F1_ZH, FIELDS_ZH),
    _task("hotpotqa", "multi-document QA", "en", 32, F1, PASSAGES),
    _task("2wikimqa", "multi-document QA", "en", 32, F1, PASSAGES),
    _task("musique", "multi-document QA", "en", 32, F1, PASSAGES),
    _task("dureader", "multi-document QA", "zh", 128, ROUGE_ZH, DUREADER),
    _task("gov_report", "summarization", "en", 512, ROUGE, REPORT),
    _task("qmsum", "summarization", "en", 512, ROUGE, MEETING),
    _task("multi_news", "summarization", "en", 512, ROUGE, NEWS),
    _task("vcsum", "summarization", "zh", 512, ROUGE_ZH, MEETING_ZH),
    _task("trec", "few-shot", "en", 64, CLASSIFICATION, QUESTION_TYPES, few=True),
    _task("triviaqa", "few-shot", "en", 32, F1, TRIVIA, few=True),
    _task("samsum", "few-shot", "en", 128, ROUGE, DIALOGUE, few=True),
    _task("lsht", "few-shot", "zh", 64, CLASSIFICATION, NEWS_TYPES, few=True),
    _task("passage_count", "synthetic", "en", 32, ("count score", metrics.count, ()), COUNT),
    _task("passage_retrieval_en", "synthetic", "en", 32, ("retrieval score", metrics.retrieval, ()), RETRIEVAL_EN),
    _task(
        "passage_retrieval_zh", "synthetic", "zh", 32, ("retrieval score", metrics.chinese_retrieval, ()), RETRIEVAL_ZH
    ),
    _task("lcc", "code", "code", 64, SIMILARITY, CODE),
    _task("repobench-p", "code", "code", 64, SIMILARITY, CODE_REPOSITORY),
)
