"""Prometheus metrics of one app, in its own registry; names and units stand in docs/reference/metrics.md.

What the batcher counts anyway is read from it when Prometheus asks (`BatcherCollector`), so the two cannot
disagree. Children of the rest are bound once: looking up a label costs more than the observation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.batching.batcher import Batcher, Outcome
from service.errors import documented
from service.observe.stage_times import STAGES
from service.pictures.decode_pool import DecodeWorkers
from service.pictures.kills import KILLS
from service.store.image_store import ImageStore

log = logging.getLogger(__name__)

REQUEST_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STAGE_BUCKETS = tuple(50e-6 * 2**step for step in range(18))
"""50 µs to 6.6 s, doubling."""
BATCH_BUCKETS = tuple(float(2**step) for step in range(11))
STORE_OPERATIONS = ("put", "get")
LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """Every metric of one app."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "freqmerge_http_requests", "HTTP requests answered", ["route", "code"], registry=registry
        )
        self._durations = Histogram(
            "freqmerge_http_request_duration_seconds",
            "Time from the request's headers to the end of its answer",
            ["route"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        stages = Histogram(
            "freqmerge_stage_duration_seconds",
            "Time that one request spent in a stage, waiting for a thread included",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.last_batch_s = 0.0
        """When the last batch ran, in seconds since 1970."""
        self.in_flight = 0
        """HTTP requests that have not been answered yet."""
        Gauge(
            "freqmerge_http_requests_in_flight", "HTTP requests that are being answered", registry=registry
        ).set_function(lambda: self.in_flight)
        self._batch_size = Histogram(
            "freqmerge_batch_size", "Images in a batch that ran", buckets=BATCH_BUCKETS, registry=registry
        )
        rejected = Counter(
            "freqmerge_rejected", "Requests that ended with a problem document", ["reason"], registry=registry
        )
        self._lag = Histogram(
            "freqmerge_event_loop_lag_seconds",
            "How late a timer of the event loop fired",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self._memory_waits = Histogram(
            "freqmerge_decoding_memory_wait_seconds",
            "Time that a picture waited for memory to be decoded in, mostly 0",
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        store_failures = Counter(
            "freqmerge_store_failures",
            "Images that the shared store could not take or look up",
            ["operation"],
            registry=registry,
        )
        self._predictions = Counter(
            "freqmerge_predictions", "Images classified, by most probable label", ["label"], registry=registry
        )
        self._model = Info("freqmerge_model", "The model that is served", registry=registry)
        self._stage_children = {stage: stages.labels(stage) for stage in STAGES}
        self._rejected_children = {kind.reason: rejected.labels(kind.reason) for kind in documented()}
        self._rejected = rejected
        self._store_children = {operation: store_failures.labels(operation) for operation in STORE_OPERATIONS}
        self._request_children: dict[tuple[str, int], Counter] = {}
        self._duration_children: dict[str, Histogram] = {}
        self._prediction_children: list[Counter] = []
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def watch(
        self,
        batcher: Batcher,
        store: ImageStore,
        *,
        workers: DecodeWorkers,
        decode_wait_s: Callable[[], float],
        decoding_bytes: Callable[[], float],
        memory_waiting: Callable[[], float],
        body_bytes: Callable[[], float],
        ready: Callable[[], float],
        device: Callable[[], str | None],
    ) -> None:
        """Reads all this at every scrape; `device` is that of an engine in this process, None if there is none."""
        for collector in (
            BatcherCollector(batcher),
            StoreCollector(store),
            DecoderCollector(workers),
            GpuCollector(device),
        ):
            self.registry.register(collector)
        for name, text, value in (
            (
                "freqmerge_decode_wait_seconds",
                "How long a picture has waited to be decoded, the longest of those that wait",
                decode_wait_s,
            ),
            ("freqmerge_decoding_bytes", "Memory that pictures being decoded hold", decoding_bytes),
            (
                "freqmerge_decoding_memory_waiting_images",
                "Pictures that wait for memory to be decoded in",
                memory_waiting,
            ),
            ("freqmerge_body_bytes", "Memory that request bodies hold", body_bytes),
            ("freqmerge_ready", "1 while the service is ready, else 0", ready),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    def set_model(self, info: dict[str, str], class_names: Sequence[str]) -> None:
        """Names the model, and opens one prediction counter per class."""
        self._model.info(info)
        self._prediction_children = [self._predictions.labels(name) for name in class_names]

    def request(self, route: str, code: int, seconds: float) -> None:
        """Counts an answered request; `route` is a template, never a path that a client made up."""
        if (route, code) not in self._request_children:
            self._request_children[route, code] = self._requests.labels(route, str(code))
            self._duration_children.setdefault(route, self._durations.labels(route))
        self._request_children[route, code].inc()
        self._duration_children[route].observe(seconds)

    def stages(self, seconds: dict[str, float]) -> None:
        """Observes the stages of one request."""
        for stage, duration in seconds.items():
            self._stage_children[stage].observe(duration)

    def batch(self, size: int) -> None:
        """Observes one batch that has just run."""
        self.last_batch_s = time.time()
        self._batch_size.observe(size)

    def rejected(self, reason: str) -> None:
        """Counts a request that ended with a problem document."""
        child = self._rejected_children.get(reason) or self._rejected.labels(reason)
        child.inc()

    def predicted(self, class_id: int) -> None:
        """Counts one classified image."""
        self._prediction_children[class_id].inc()

    def loop_lag(self, seconds: float) -> None:
        """Observes how late a timer was."""
        self._lag.observe(seconds)

    def memory_wait(self, seconds: float) -> None:
        """Observes how long a picture waited for memory; safe on any thread."""
        self._memory_waits.observe(seconds)

    def store_failed(self, operation: str, images: int) -> None:
        """Counts images that the store could not take or look up."""
        self._store_children[operation].inc(images)


def exposition(registry: Collector, accept: str) -> tuple[bytes, str]:
    """All metrics of a registry and their media type: OpenMetrics if `accept` asks for it, else Prometheus text."""
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class BatcherCollector(Collector):
    """Queue, outcomes and busy time, read when asked."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def collect(self) -> Iterator[Metric]:
        """The families."""
        batcher, counts = self._batcher, self._batcher.counts
        yield CounterMetricFamily("freqmerge_images_admitted", "Images admitted", value=counts.admitted)
        ended = CounterMetricFamily("freqmerge_images", "Admitted images, by how they ended", labels=["outcome"])
        for outcome in Outcome:
            ended.add_metric([outcome.value], getattr(counts, outcome.value))
        yield ended
        yield _gauge("freqmerge_queue_images", "Images being decoded or waiting for a batch", batcher.queued)
        yield _gauge("freqmerge_queue_limit_images", "Most images in the queue", batcher.limits.max_queue_size)
        yield CounterMetricFamily(
            "freqmerge_executor_busy_seconds",
            "Time that the engine thread spent on batches",
            value=batcher.busy_s,
        )


class DecoderCollector(Collector):
    """Processes that decode costly pictures, read when asked."""

    def __init__(self, workers: DecodeWorkers) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """The families."""
        workers = self._workers
        yield _gauge("freqmerge_costly_limit_images", "Most processes that decode costly pictures", workers.count)
        yield _gauge("freqmerge_costly_images", "Of them, those that decode one now", workers.busy)
        killed = CounterMetricFamily(
            "freqmerge_decodes_killed", "Pictures on which a decoding process ended, by why", labels=["reason"]
        )
        for reason in KILLS:
            killed.add_metric([reason], workers.killed[reason])
        yield killed


class StoreCollector(Collector):
    """Recent images, read when asked; without a sample where this process cannot know."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """The families."""
        images = GaugeMetricFamily("freqmerge_stored_images", "Recent images kept in memory")
        size = GaugeMetricFamily("freqmerge_stored_bytes", "Memory of the recent images")
        if (held := self._store.held) is not None:
            images.add_metric([], held.images)
            size.add_metric([], held.size_bytes)
        yield images
        yield size


class GpuCollector(Collector):
    """The device's memory, read when asked; without a sample where no model runs on CUDA here, or CUDA is broken."""

    def __init__(self, device: Callable[[], str | None]) -> None:
        self._device = device

    def collect(self) -> Iterator[Metric]:
        """The family."""
        family = GaugeMetricFamily(
            "freqmerge_gpu_memory_bytes", "Memory of the model's GPU, whoever uses it", labels=["state"]
        )
        device = self._device()
        if device is not None and device.startswith("cuda"):
            import torch  # loaded long since by the engine; without one the metrics do without it

            try:
                free, total = torch.cuda.mem_get_info(device)
            except Exception as error:  # a broken GPU: the other metrics, and so the alerts, must still be told
                log.warning("the memory of %s cannot be read: %s", device, error)
                yield family
                return
            family.add_metric(["used"], total - free)
            family.add_metric(["free"], free)
        yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def metric_names(registry: CollectorRegistry) -> list[str]:
    """The exposed names of our metrics, sorted; counters with `_total`, histograms without their suffixes."""
    suffixes = {"counter": "_total", "info": "_info"}
    ours = [metric for metric in registry.collect() if metric.name.startswith("freqmerge")]
    return sorted(metric.name + suffixes.get(metric.type, "") for metric in ours)
