"""InfiniteBench's 12 tasks with their published data (Zhang et al., arXiv 2402.13718; github.com/OpenBMB/InfiniteBench).

Prompts are those of its `src/prompt.py` for models without a chat format (`yarn_mistral_templates`), filled as `create_prompt` of
`src/eval_utils.py` does, lengths of answers are those of the same file, and metrics those of `src/compute_scores.py`. In a chat, the
end of a prompt that an answer goes on from stands behind the template. `tasks.infinitebench` makes five of the tasks at any length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..infinitebench import metrics
from ..records import Benchmark, RecordTask
from ..samples import Draft, first_integer_match, word_match


INFINITEBENCH = Benchmark("infinitebench", "InfiniteBench", "xinrongzhang2022/InfiniteBench")

PASSKEY = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the important "
    "information.\n\n{context}\n\n{input}"
)
NUMBER = (
    "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you about the important information "
    "there.\n\n{context}\n\n{input}"
)
KEY_VALUE = "Extract the value corresponding to the specified key in the JSON object below.\n\n{context}\n\n{input}"
SUMMARY = "Summarize the book below.\n\n{context}"
CHOICE = (
    "Read the book and answer the question.\n\n{context}\n\nQuestion: {input}\nA. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\n"
    "D. {OPTION_D}"
)
BOOK_EN = "Read the book and answer the question. Be very concise in your answer.\n\n{context}\n\nQuestion: {input}"
BOOK_ZH = "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{input}"
DIALOGUE = (
    'Below is a dialogue script where one random occurrence of a character name is replaced with "$$MASK$$", and you should try to '
    "guess who that character is.\n\n{context}"
)
FIND = "{prefix}\n\n{context}\n\n{input}"
CALCULATE = (
    "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues: [1, 4, 8]\n\n"
    "Expression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: {context}"
)
RUN = "There is a function called {func} in the following Python code.\n\n{context}\n\nPlease compute the exact value of {func_call}."
DEBUG = (
    "Following is a Python code where exactly one of the functions/methods has a deliberate error that makes it crash.\n\n{context}\n\n"
    "Options:\nA. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}"
)


@dataclass(frozen=True)
class InfiniteBenchTask(RecordTask):
    """One of the tasks.

    Attributes:
        measure (`Callable`): The score of an answer against all references.
        prompt, start (`str`): The two parts of the template: what is given, and how the answer starts.
    """

    measure: Callable[[str, Sequence[str]], float] = metrics.english_answer
    prompt: str = ""
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
        if self.prompt == FIND:
            number = re.findall(r"The .+ of", record["input"])[0].lower().removesuffix(" of")
            return {"prefix": f"What is {number} in the following list?"}
        if self.prompt == RUN:
            call = re.findall(r"func_[0-9]+\(-?[0-9]+\)", record["input"])[0]
            return {"func": call.partition("(")[0], "func_call": call}
        return {}

    def score(self, prediction: str, references: Sequence[str]) -> float:
        return self.measure(prediction, references)


def _task(name: str, tokens: int, metric: str, measure: Any, prompt: str, start: str = "", **more: Any) -> Any:
    return InfiniteBenchTask(
        f"{INFINITEBENCH.name}/{name}",
        "all tasks",  # the paper averages over them, in both languages
        "",
        tokens,
        metric,
        is_binary=metric == "accuracy",
        measure=measure,
        prompt=prompt,
        start=start,
        **more,
    )


INFINITEBENCH_RECORD_TASKS: tuple[InfiniteBenchTask, ...] = (
    _task("passkey", 6, "accuracy", first_integer_match, PASSKEY, "\n\nThe pass key is"),
    _task("number_string", 12, "accuracy", first_integer_match, NUMBER, "\n\nThe sequence of digits is"),
    _task("kv_retrieval", 50, "accuracy", word_match, KEY_VALUE),
    _task(
        "longbook_sum_eng",
        1200,
        "ROUGE-L-Sum",
        metrics.summary,
        SUMMARY,
        "\n\nSummary:",
        packages=("rouge_score.rouge_scorer",),
    ),
    _task("longbook_choice_eng", 40, "accuracy", metrics.choice, CHOICE, "\n\nThe letter of the correct answer is"),
    _task("longbook_qa_eng", 40, "F1", metrics.english_answer, BOOK_EN, "\nAnswer:"),
    _task("longbook_qa_chn", 40, "F1", metrics.chinese_answer, BOOK_ZH, "\n答案："),
    _task(
        "longdialogue_qa_eng",
        40,
        "accuracy",
        metrics.character,
        DIALOGUE,
        "\n\nThe name that has been replaced with $$MASK$$ is likely",
    ),
    _task("math_find", 3, "accuracy", metrics.found_number, FIND),
    _task("math_calc", 30_000, "share of right values", metrics.leading_values, CALCULATE, "\nValues:"),
    _task("code_run", 5, "accuracy", metrics.returned_value, RUN, " The value of {func_call} is"),
    _task("code_debug", 5, "accuracy", metrics.bug, DEBUG, "\n\nThe correct option is:"),
)
