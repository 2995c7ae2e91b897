"""InfiniteBench's 12 tasks with their published data (Zhang et al., arXiv 2402.13718;
github.com/OpenBMB/InfiniteBench).

Prompts are those of its `src/prompt.py` for models without a chat format (`yarn_mistral_templates`), filled as
`create_prompt` of `src/eval_utils.py` does, lengths of answers are those of the same file, and metrics those of
`src/compute_scores.py`. In a chat, the end of a prompt that an answer goes on from stands behind the template. `made`
makes five of the tasks at any length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..matching import first_integer_match, word_match
from ..records import Benchmark, Measure, RecordTask
from ..samples import Draft, published_prompts
from . import metrics


INFINITEBENCH = Benchmark("infinitebench", "InfiniteBench", "xinrongzhang2022/InfiniteBench")

PROMPTS = published_prompts(__file__)


@dataclass(frozen=True)
class InfiniteBenchTask(RecordTask):
    """One of the tasks.

    Attributes:
        start (`str`): What stands behind `prompt` in the template: how the answer starts.
    """

    start: str = ""

    benchmark: ClassVar[Benchmark] = INFINITEBENCH
    fields: ClassVar[tuple[str, ...]] = ("input", "context", "answer")

    def draft(self, record: Mapping[str, Any]) -> Draft:
        values = {**record, **self.values(record)}
        answer = record["answer"]
        references = tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),)
        if "{OPTION_A}" in self.prompt and len(references) == 1:
            references = (references[0], "ABCD"[record["options"].index(references[0])])
        elif self.measure is metrics.leading_values and isinstance(answer[0], list):
            references = tuple(map(str, answer[0]))
        return Draft(self.prompt.format(**values), self.start.format(**values), references)

    def values(self, record: Mapping[str, Any]) -> dict[str, str]:
        """What a template has besides a record's fields."""
        if "{OPTION_A}" in self.prompt:
            return {f"OPTION_{letter}": option for letter, option in zip("ABCD", record["options"])}
        if "{prefix}" in self.prompt:
            number = re.findall(r"The .+ of", record["input"])[0].lower().removesuffix(" of")
            return {"prefix": f"What is {number} in the following list?"}
        if "{func_call}" in self.prompt:
            call = re.findall(r"func_[0-9]+\(-?[0-9]+\)", record["input"])[0]
            return {"func": call.partition("(")[0], "func_call": call}
        return {}


def _task(name: str, tokens: int, metric: str, measure: Measure, *packages: str) -> InfiniteBenchTask:
    return InfiniteBenchTask(
        name=f"{INFINITEBENCH.name}/{name}",
        category="all tasks",  # the paper averages over them, in both languages
        language="",
        new_tokens=tokens,
        metric=metric,
        measure=measure,
        is_binary=metric == "accuracy",
        packages=packages,
        **PROMPTS[name],
    )


INFINITEBENCH_RECORD_TASKS: tuple[InfiniteBenchTask, ...] = (
    _task("passkey", 6, "accuracy", first_integer_match),
    _task("number_string", 12, "accuracy", first_integer_match),
    _task("kv_retrieval", 50, "accuracy", word_match),
    _task("longbook_sum_eng", 1200, "ROUGE-L-Sum", metrics.summary, "rouge_score.rouge_scorer"),
    _task("longbook_choice_eng", 40, "accuracy", metrics.choice),
    _task("longbook_qa_eng", 40, "F1", metrics.english_answer),
    _task("longbook_qa_chn", 40, "F1", metrics.chinese_answer),
    _task("longdialogue_qa_eng", 40, "accuracy", metrics.character),
    _task("math_find", 3, "accuracy", metrics.found_number),
    _task("math_calc", 30_000, "share of right values", metrics.leading_values),
    _task("code_run", 5, "accuracy", metrics.returned_value),
    _task("code_debug", 5, "accuracy", metrics.bug),
)
