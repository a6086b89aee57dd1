"""The metrics of several replicas as one exposition, with the label `replica`.

A figure is told by those who make it, so that a sum over all replicas counts nothing twice: batches, busy time, GPU and
model by the engines; requests, images and their ends by the ingresses; queues and processes by both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

LABEL = "replica"

BY_ENGINES = frozenset(
    {"freqmerge_batch_size", "freqmerge_executor_busy_seconds", "freqmerge_gpu_memory_bytes", "freqmerge_model"}
)
BY_BOTH = frozenset({"freqmerge_queue_images", "freqmerge_queue_limit_images"})


class Family(NamedTuple):
    """A metric of one replica, as plain data that travels."""

    name: str
    documentation: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


def families(registry: Collector, *, engine: bool) -> list[Family]:
    """What an engine replica tells of its metrics, or what an ingress does."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, dict(sample.labels), sample.value) for sample in metric.samples],
        )
        for metric in registry.collect()
        if _is_own_metric(metric.name, engine)
    ]


class Gathered(Collector):
    """The families of many replicas, one after the other in each metric."""

    def __init__(self, families_by_replica: Mapping[str, Sequence[Family]]) -> None:
        self._families_by_replica = families_by_replica

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        merged: dict[str, Metric] = {}
        for replica, replica_families in self._families_by_replica.items():
            for name, documentation, kind, samples in replica_families:
                metric = merged.setdefault(name, Metric(name, documentation, kind))
                for sample, labels, value in samples:
                    metric.add_sample(sample, {**labels, LABEL: replica}, value)
        yield from merged.values()


def _is_own_metric(name: str, engine: bool) -> bool:
    if not name.startswith("freqmerge_") or name in BY_BOTH:
        return True
    return (name in BY_ENGINES) == engine
