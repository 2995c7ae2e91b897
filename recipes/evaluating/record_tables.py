"""Tables of benchmarks whose samples are published records: a row for each task, a column for each method, and averages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluating.configuration import length_name
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
                mean = _mean([_mean([scores[name] for name in names]) for names in tasks])
                entry = {"benchmark": benchmark.name, "over": over, "method": method, "length": length, "mean": mean}
                found.append(entry)
    return found


def ruler_averages(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mean over RULER's tasks of each method at each length, where all have been run; tasks count the same, whatever their samples."""
    means: dict[tuple[str, int], list[float]] = {}
    for result in results:
        if result["task"] in RULER:
            means.setdefault((result["method"], result["length"]), []).append(result["mean"])
    return [
        {
            "benchmark": "ruler",
            "over": f"{len(RULER)} tasks",
            "method": method,
            "length": length,
            "mean": _mean(own),
        }
        for (method, length), own in means.items()
        if len(own) == len(RULER)
    ]


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


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def record_tables(results: Sequence[Mapping[str, Any]], skipped: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table in Markdown for each benchmark and length, in percent."""
    entries = [entry for entry in [*results, *skipped] if entry["task"] in RECORD_TASKS]
    tables = []
    for benchmark, length in dict.fromkeys((RECORD_TASKS[e["task"]].benchmark, e["length"]) for e in entries):
        own = [e for e in entries if (RECORD_TASKS[e["task"]].benchmark, e["length"]) == (benchmark, length)]
        tables.append(_table(benchmark, length, own))
    return tables


def _table(benchmark: Benchmark, length: int | None, entries: Sequence[Mapping[str, Any]]) -> str:
    ran = [entry for entry in entries if "mean" in entry]
    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    what = "whole records" if length is None else f"records of at most {length_name(length)} tokens"
    lines = [f"## {benchmark.title}, {what}: percent", "", "| task | metric | " + " | ".join(methods) + " |"]
    lines.append("|---" * (len(methods) + 2) + "|")
    cells = {(entry["task"], entry["method"]): _cell(entry) for entry in ran}
    for name, task in RECORD_TASKS.items():
        if any(entry["task"] == name for entry in entries):
            row = [cells.get((name, method), "–") for method in methods]
            lines.append(f"| {task.short_name} | {task.metric} | " + " | ".join(row) + " |")
    means = averages(ran)
    for over in dict.fromkeys(entry["over"] for entry in means):
        own = {entry["method"]: f"{100 * entry['mean']:.2f}" for entry in means if entry["over"] == over}
        lines.append(f"| **{over}** | average | " + " | ".join(own.get(method, "–") for method in methods) + " |")
    cut = [entry for entry in ran if entry.get("cut")]
    notes = [f"- {e['method']}, {_short(e)}: {e['cut']} of {e['samples']} prompts cut in the middle" for e in cut]
    notes += [f"- {e['method']}, {_short(e)}: not run. {e['reason']}" for e in entries if "reason" in e]
    return "\n".join([*lines, *(["", *dict.fromkeys(notes)] if notes else [])])


def _short(entry: Mapping[str, Any]) -> str:
    return RECORD_TASKS[entry["task"]].short_name


def _cell(result: Mapping[str, Any]) -> str:
    part = "" if result["samples"] == result["planned"] else f" of {result['planned']}"
    count = f" ({result['samples']}{part})"
    mean = f"{100 * result['mean']:.2f}"
    if "wilson_95" in result:
        low, high = (100 * bound for bound in result["wilson_95"])
        return f"{mean} [{low:.2f}, {high:.2f}]{count}"
    error = f" ± {100 * result['standard_error']:.2f}" if "standard_error" in result else ""
    return f"{mean}{error}{count}"
