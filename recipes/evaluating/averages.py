"""Averages over the tasks of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from focus_peft.tasks import RECORD_TASKS, Benchmark
from focus_peft.tasks.ruler.needles import NIAH_TASKS
from focus_peft.tasks.ruler.words_and_variables import RULER_TASKS


# Languages by what the rows of their averages are called
LANGUAGES = {"en": "English", "zh": "Chinese"}
# RULER's tasks that are made from a seed
RULER = tuple(task.name for task in (*NIAH_TASKS, *RULER_TASKS))


def averages(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the tasks of a category in one language, and of these over a language, as LongBench reports them.

    Only where every task that belongs to one has been run; code counts in both languages.
    """
    means: dict[tuple, dict[str, float]] = {}
    for result in results:
        if result["task"] in RECORD_TASKS:
            benchmark = RECORD_TASKS[result["task"]].benchmark
            means.setdefault((benchmark, result["length"], result["method"]), {})[result["task"]] = result["mean"]
    found = []
    for (benchmark, length, method), scores in means.items():
        for over, tasks in _groups(benchmark).items():
            if all(name in scores for names in tasks for name in names):
                mean = fmean(fmean(scores[name] for name in names) for names in tasks)
                entry = {"benchmark": benchmark.name, "over": over, "method": method, "length": length, "mean": mean}
                found.append(entry)
    return found


def ruler_averages(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mean over RULER's tasks of each method at each length, where all have been run; all tasks count the same."""
    means: dict[tuple[str, int], list[float]] = {}
    for result in results:
        if result["task"] in RULER:
            means.setdefault((result["method"], result["length"]), []).append(result["mean"])
    whole = {place: own for place, own in means.items() if len(own) == len(RULER)}
    common = {"benchmark": "ruler", "over": f"{len(RULER)} tasks"}
    return [{**common, "method": method, "length": n, "mean": fmean(own)} for (method, n), own in whole.items()]


def _groups(benchmark: Benchmark) -> dict[str, list[list[str]]]:
    """Names of averages, and the tasks of each; those of a language are means of means."""
    groups: dict[tuple[str, str], list[str]] = {}
    for task in RECORD_TASKS.values():
        if task.benchmark == benchmark:
            groups.setdefault((task.category, task.language), []).append(task.name)
    named = {
        f"{category}, {LANGUAGES[language]}" if language in LANGUAGES else category: [names]
        for (category, language), names in groups.items()
    }
    for language, title in LANGUAGES.items():
        categories = [names for (_, own), names in groups.items() if own in (language, "code")]
        if any(own == language for _, own in groups):
            named[title] = categories
    return named
