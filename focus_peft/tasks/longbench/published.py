"""LongBench's 21 tasks (Bai et al., arXiv 2308.14508; github.com/THUDM/LongBench).

Prompts are those of its `config/dataset2prompt.json`, lengths of answers those of `dataset2maxlen.json`, metrics those
of `metrics.py` and `eval.py`; few-shot and code tasks are never put into a chat template, as in `pred.py`. What
differs: an answer to samsum goes on to its end, where `pred.py` stops at a line break and forbids one as the first
token; what is scored is its first line in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..records import Benchmark, Measure, RecordTask
from ..samples import Draft, Sample, published_prompts
from . import metrics


LONGBENCH = Benchmark("longbench", "LongBench", "THUDM/LongBench", archive="data.zip")

PROMPTS = published_prompts(__file__)


@dataclass(frozen=True)
class LongBenchTask(RecordTask):
    """One of the tasks. `measure` scores an answer against one reference; the best of all counts.

    Attributes:
        chat (`bool`): Whether it may be put into a chat template. Defaults to `True`.
        first_line (`bool`): Score only the answer's first line. Defaults to `False`.
    """

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
        return max((self.measure(prediction, reference, **more) for reference in references), default=0.0)

    def score_sample(self, prediction: str, sample: Sample) -> float:
        return self.score(prediction, sample.references, sample.classes)


# A metric: its name, the function, and the packages that it needs
Metric = tuple[str, Measure, tuple[str, ...]]
F1: Metric = ("F1", metrics.english_f1, ())
F1_ZH: Metric = ("F1", metrics.chinese_f1, ("jieba",))
ROUGE: Metric = ("ROUGE-L", metrics.rouge_l, ("rouge",))
ROUGE_ZH: Metric = ("ROUGE-L", metrics.chinese_rouge_l, ("jieba", "rouge"))
CLASSIFICATION: Metric = ("classification score", metrics.classification, ())
COUNT: Metric = ("count score", metrics.share_of_numbers, ())
RETRIEVAL: Metric = ("retrieval score", metrics.retrieval, ())
RETRIEVAL_ZH: Metric = ("retrieval score", metrics.chinese_retrieval, ())
SIMILARITY: Metric = ("edit similarity", metrics.code_similarity, ())


def _task(name: str, category: str, language: str, tokens: int, metric: Metric) -> LongBenchTask:
    title, measure, packages = metric
    few = category == "few-shot"
    return LongBenchTask(
        name=f"{LONGBENCH.name}/{name}",
        category=category,
        language=language,
        new_tokens=tokens,
        metric=title,
        measure=measure,
        prompt=PROMPTS[name],
        packages=packages,
        chat=not few and category != "code",
        first_line=few,  # answers go on with another example
    )


LONGBENCH_TASKS: tuple[LongBenchTask, ...] = (
    _task("narrativeqa", "single-document QA", "en", 128, F1),
    _task("qasper", "single-document QA", "en", 128, F1),
    _task("multifieldqa_en", "single-document QA", "en", 64, F1),
    _task("multifieldqa_zh", "single-document QA", "zh", 64, F1_ZH),
    _task("hotpotqa", "multi-document QA", "en", 32, F1),
    _task("2wikimqa", "multi-document QA", "en", 32, F1),
    _task("musique", "multi-document QA", "en", 32, F1),
    _task("dureader", "multi-document QA", "zh", 128, ROUGE_ZH),
    _task("gov_report", "summarization", "en", 512, ROUGE),
    _task("qmsum", "summarization", "en", 512, ROUGE),
    _task("multi_news", "summarization", "en", 512, ROUGE),
    _task("vcsum", "summarization", "zh", 512, ROUGE_ZH),
    _task("trec", "few-shot", "en", 64, CLASSIFICATION),
    _task("triviaqa", "few-shot", "en", 32, F1),
    _task("samsum", "few-shot", "en", 128, ROUGE),
    _task("lsht", "few-shot", "zh", 64, CLASSIFICATION),
    _task("passage_count", "synthetic", "en", 32, COUNT),
    _task("passage_retrieval_en", "synthetic", "en", 32, RETRIEVAL),
    _task("passage_retrieval_zh", "synthetic", "zh", 32, RETRIEVAL_ZH),
    _task("lcc", "code", "code", 64, SIMILARITY),
    _task("repobench-p", "code", "code", 64, SIMILARITY),
)
