"""From single answers to figures: percentiles, rates, medians over rounds. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

PERCENTILES = (50, 90, 95, 99)


class Sample(NamedTuple):
    """One request, as the client saw it."""

    at_s: float
    """When it ended, since the start of the load."""
    latency_s: float
    """Until its last byte; from the scheduled time where there is a schedule."""
    status: int
    """0: the connection broke or no answer came."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank); NaN of nothing."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if values else math.nan


def latencies_ms(samples: Sequence[Sample]) -> dict[str, float]:
    """p50, p90, p95 and p99 in milliseconds; empty of nothing."""
    values = [1000 * sample.latency_s for sample in samples]
    return {f"p{percent}_ms": round(percentile(values, percent), 3) for percent in PERCENTILES} if values else {}


def summary(samples: Sequence[Sample], seconds: float, images: int = 1) -> dict[str, Any]:
    """Figures of a load that took `seconds`: percentiles and images/s of what was answered with 200, and the rest.

    `images` is how many pictures one request holds.
    """
    good = [sample for sample in samples if sample.status == 200]
    in_time = sum(sample.at_s <= seconds for sample in good)
    refused = [sample for sample in samples if sample.status != 200]
    figures: dict[str, Any] = {
        "requests": len(samples),
        "images_per_s": round(images * in_time / seconds, 1),
        **latencies_ms(good),
        "statuses": {str(status): count for status, count in sorted(Counter(s.status for s in samples).items())},
    }
    if refused:
        figures["refused"] = latencies_ms(refused)
    return figures


def middle(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the numbers that every round has, with the lowest and highest images/s beside."""
    told: dict[str, Any] = {}
    for name, first in rounds[0].items():
        values = [one[name] for one in rounds if name in one]
        if len(values) < len(rounds):
            continue
        if isinstance(first, dict):
            told[name] = _added(values) if name == "statuses" else middle(values)
        elif isinstance(first, int | float) and not isinstance(first, bool):
            told[name] = round(statistics.median(values), 4)
        else:
            told[name] = first
    if rates := [one["images_per_s"] for one in rounds if "images_per_s" in one]:
        told["images_per_s_range"] = [min(rates), max(rates)]
    return told


def _added(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
