"""The means of an evaluation as `focus-peft publish --results` takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluating.configuration import Evaluation
from evaluating.texts import title
from focus_peft.adapter_file import WEIGHTS_FILE
from focus_peft.hub.results import ADAPTER, ERROR, INTERVAL, LENGTH, SAMPLES, Result, environment
from focus_peft.hub.weights import weights_digest
from focus_peft.tasks import RECORD_TASKS


def publishable(results: Sequence[Mapping[str, Any]], command: str, evaluation: Evaluation) -> list[Result]:
    """What `focus-peft publish --results` takes: every mean, the adapter's own and those of the other methods.

    Perplexities of other texts than the adapter's are no baseline, and are left out; the difference on the texts that
    both have read is there for every method.
    """
    found, where = [], {**environment(), "adapter": measured_adapter(evaluation)}
    for result in results:
        perplexity, records = "perplexity" in result, RECORD_TASKS.get(result["task"])
        dataset = ", ".join(map(title, evaluation.texts)) if perplexity else f"made from seed {evaluation.seed}"
        settings = {name: result[name] for name in (LENGTH, SAMPLES) if result[name] is not None}
        settings["dtype"] = evaluation.model.dtype
        if records is not None:
            dataset = f"{records.benchmark.repo}, {records.short_name}"
            settings["prompts cut in the middle"] = result["cut"]
        if "wilson_95" in result:
            settings[INTERVAL] = [round(bound, 3) for bound in result["wilson_95"]]
        subject = ADAPTER if result["method"] == ADAPTER else result["method"].replace("_", " ")
        common = {"task": result["task"], "dataset": dataset, "command": command, "subject": subject, **where}
        difference = result.get("above_adapter")
        if difference is None or difference["same_texts"]:
            metric = "perplexity" if perplexity else result["metric"]
            value = round(result["perplexity"] if perplexity else result["mean"], 4)
            found.append(Result(metric=metric, value=value, settings=settings, **common))
        if difference is not None:
            settings = {**settings, SAMPLES: difference["samples"]}
            if "standard_error" in difference:
                settings[ERROR] = round(difference["standard_error"], 3)
            metric = "cross-entropy above the adapter's on the same texts"
            found.append(Result(metric=metric, value=round(difference["mean"], 3), settings=settings, **common))
    return found


def measured_adapter(evaluation: Evaluation) -> str | None:
    """A digest of the adapter's file. None: there is no adapter, or it is on the Hub."""
    file = Path(evaluation.adapter or "", WEIGHTS_FILE)
    return weights_digest(file) if evaluation.adapter and file.is_file() else None
