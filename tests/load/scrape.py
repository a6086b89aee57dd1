"""What the service's own metrics say about a load: differences of two scrapes."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

STAGES = "freqmerge_stage_duration_seconds"
BATCHES = "freqmerge_batch_size"

Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Scrape:
    """Every sample by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def stage_means_us(before: Scrape, after: Scrape) -> dict[str, float]:
    """Mean time that a request spent in each stage between the scrapes, in microseconds; stages without any left out.

    Wall time: waiting for a thread or for the interpreter is in it.
    """
    stages = sorted({labels[0][1] for name, labels in after if name == f"{STAGES}_count"})
    means = {}
    for stage in stages:
        labels = (("stage", stage),)
        count = _difference(before, after, f"{STAGES}_count", labels)
        if count:
            means[stage] = round(1e6 * _difference(before, after, f"{STAGES}_sum", labels) / count, 1)
    return means


def mean_batch(before: Scrape, after: Scrape) -> float:
    """Images per batch between the scrapes; 0 if there was none."""
    count = _difference(before, after, f"{BATCHES}_count", ())
    return round(_difference(before, after, f"{BATCHES}_sum", ()) / count, 2) if count else 0.0


def _difference(before: Scrape, after: Scrape, name: str, labels: tuple[tuple[str, str], ...]) -> float:
    return after.get((name, labels), 0.0) - before.get((name, labels), 0.0)
