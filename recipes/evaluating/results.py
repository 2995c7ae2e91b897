"""What an evaluation leaves: a file with every sample, and means over them with intervals and paired differences."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import focus_peft
from evaluating.hub_texts import title
from focus_peft.hub.results import ADAPTER, ERROR, INTERVAL, LENGTH, SAMPLES, Result, environment
from focus_peft.tasks import RECORD_TASKS
from focus_peft.trainer.metrics import peak_memory


ROOT = Path(__file__).resolve().parents[2]
# What tells samples apart
KEY = ("task", "method", "length", "number")
# Of a normal distribution, what holds 95 %
Z = 1.959964


class SampleFile:
    """`samples.jsonl`: a line for each sample, on disk when `add` returns. A last line that was cut off is removed.

    Raises:
        BlockingIOError: if another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "a+b")  # noqa: SIM115  (stays open for as long as samples come)
        lock(self.file, path)
        self.file.seek(0)
        content = self.file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.file.truncate(len(whole))
        self.samples: dict[tuple, dict[str, Any]] = {}
        for line in whole.decode("utf-8").splitlines():
            sample = json.loads(line)
            self.samples[key_of(sample)] = sample

    def add(self, sample: dict[str, Any]) -> None:
        self.file.write(json.dumps(sample, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.samples[key_of(sample)] = sample

    def close(self) -> None:
        self.file.close()


def lock(file: Any, path: Path) -> None:
    """Keep a file that is open for this process alone.

    Raises:
        BlockingIOError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BlockingIOError(f"Another process is writing to {str(path)!r}; wait for it, or end it.") from error


def key_of(sample: Mapping[str, Any]) -> tuple:
    return tuple(sample[name] for name in KEY)


def wilson(right: float, samples: int, z: float = Z) -> tuple[float, float]:
    """The Wilson interval of a share of right answers."""
    share = right / samples
    middle = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def summarise(samples: Iterable[Mapping[str, Any]], planned: Mapping[tuple, int]) -> list[dict[str, Any]]:
    """Means of every task, method and length. Samples that say how many `labels` they have count by these, those with none not at all.

    A cross-entropy also has its difference from the adapter's over the samples that both have: texts differ more than methods do.

    Args:
        samples: What has been run.
        planned: How many samples each (task, method, length) should have.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for sample in samples:
        groups.setdefault(key_of(sample)[:3], []).append(sample)
    results = []
    for group, count in planned.items():
        ran = groups.get(group, [])
        if not ran:
            continue
        having = [sample for sample in ran if sample["score"] is not None]
        if not having:
            continue
        scores = [sample["score"] for sample in having]
        weights = [sample.get("labels", 1) for sample in having]
        means = mean_and_error(scores, weights)
        result = {**dict(zip(KEY, group)), "metric": ran[0]["metric"], "samples": len(ran), "planned": count}
        if ran[0]["metric"] == "accuracy":
            result |= {"mean": means["mean"], "wilson_95": list(wilson(math.fsum(scores), len(scores)))}
        else:
            result |= means
        if ran[0]["metric"] == "cross_entropy":
            result["perplexity"] = math.exp(means["mean"])
            if "labels" in ran[0]:
                result["labels"] = sum(weights)
            if difference := _above_adapter(having, groups.get((group[0], ADAPTER, group[2]), [])):
                result["above_adapter"] = difference
        if "cut" in ran[0]:
            result["cut"] = sum(sample["cut"] for sample in ran)
        result["seconds_per_sample"] = math.fsum(sample["seconds"] for sample in ran) / len(ran)
        results.append(result)
    return results


def mean_and_error(values: Sequence[float], weights: Sequence[float]) -> dict[str, float]:
    """The weighted `mean`, and of more than one value its `standard_error`."""
    total = math.fsum(weights)
    mean = math.fsum(value * weight for value, weight in zip(values, weights)) / total
    if len(values) < 2:
        return {"mean": mean}
    squares = math.fsum((weight * (value - mean)) ** 2 for value, weight in zip(values, weights))
    return {"mean": mean, "standard_error": math.sqrt(squares * len(values) / (len(values) - 1)) / total}


def _above_adapter(having: Sequence[Mapping[str, Any]], adapter: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How much larger scores are than the adapter's for the same samples. None: for the adapter itself, or without such samples."""
    its = {sample["number"]: sample["score"] for sample in adapter if sample["score"] is not None}
    both = [sample for sample in having if sample["number"] in its]
    if not both or having[0]["method"] == ADAPTER:
        return None
    weights = [sample.get("labels", 1) for sample in both]
    return {
        "samples": len(both),
        "same_texts": len(both) == len(having) == len(its),
        **mean_and_error([sample["score"] - its[sample["number"]] for sample in both], weights),
    }


def publishable(results: Sequence[Mapping[str, Any]], command: str, evaluation: Any) -> list[Result]:
    """What `focus-peft publish --results` takes: every mean, the adapter's own and those of the other methods.

    Perplexities of other texts than the adapter's are no baseline, and are left out; the difference on the texts that both have read is there
    for every method.
    """
    found, where = [], environment()
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


def git_commit() -> str | None:
    """The commit of this code, with a mark if it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of the packages that answers come from."""
    return {module.__name__: module.__version__ for module in (focus_peft, peft, torch, transformers)}


def origins(samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many samples each combination of commit and versions has made; older samples do not say which versions."""
    counts: dict[str, int] = {}
    for sample in samples:
        origin = json.dumps({name: sample.get(name) for name in ("commit", "versions")}, sort_keys=True)
        counts[origin] = counts.get(origin, 0) + 1
    return [{**json.loads(origin), "samples": count} for origin, count in sorted(counts.items())]


def circumstances(device: torch.device) -> dict[str, Any]:
    """What results of this process depend on besides the configuration."""
    return {
        "versions": versions(),
        "machine": {
            "python": platform.python_version(),
            "processor": f"{platform.system()}, {platform.machine()}",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "threads": torch.get_num_threads(),
        },
        "peak_memory_gb_of_the_last_run": round(peak_memory(device) / 1e9, 2),
    }


def write_text(path: Path, text: str) -> None:
    """Replace a file whole."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
