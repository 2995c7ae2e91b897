"""Means over samples, with intervals and paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluating.sample_file import KEY, key_of
from focus_peft.hub.results import ADAPTER


# 95 % of a normal distribution lie within so many standard deviations
Z = 1.959964


def wilson(right: float, samples: int) -> tuple[float, float]:
    """The Wilson interval of a share of right answers."""
    share = right / samples
    middle = share + Z * Z / (2 * samples)
    half = Z * math.sqrt(share * (1 - share) / samples + Z * Z / (4 * samples * samples))
    scale = 1 + Z * Z / samples
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def summarize(samples: Iterable[Mapping[str, Any]], planned: Mapping[tuple, int]) -> list[dict[str, Any]]:
    """Means of every task, method and length. Samples that say how many `labels` they have count by these, those with
    none not at all.

    A cross-entropy also has its difference from the adapter's over the samples that both have: texts differ more than
    methods do.

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
        if "exact" in ran[0]:
            result["exact"] = sum(sample["exact"] for sample in ran) / len(ran)
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
    """How much larger scores are than the adapter's for the same samples; None if there are none of another method."""
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
