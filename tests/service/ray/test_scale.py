"""Ingress and engine replica without Ray between them: calls that gather, are refused, get lost, and are counted."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.app import create_app
from service.batching.batcher import Batcher, Counts
from service.batching.waiting import Answer, Limits
from service.errors import Draining, EngineFailed, NotReady, QueueFull, RequestError, SettingsError, StartupError
from service.errors import documented as every_problem
from service.observe.metrics import exposition, metric_names
from service.ray import plan
from service.ray.engine import Engine
from service.ray.gathered import BY_BOTH, BY_ENGINES, Gathered, families
from service.ray.remote import CALLS_PER_ENGINE, RemoteEngine, remote_model
from service.ray.wire import Reply, describe, packed, unpacked
from service.settings import Settings, read_settings
from tests.service.conftest import DEADLINE_S, until
from tests.support.doubles import POISON, SCORES, SOURCE_MAPS, FakeEngine, loader, pixels, served

pytestmark = pytest.mark.anyio

Call = Callable[[NDArray[np.uint8]], Awaitable[Reply]]


def answer(value: int) -> Answer:
    logits = np.zeros(100, np.float32)
    logits[value] = 1
    return Answer(logits, SCORES, SOURCE_MAPS, 0.0, 0.0, 0.0, 1, 0.0)


def values(images: NDArray[np.uint8]) -> list[int]:
    return [int(image.flat[0]) for image in images]


class Caller:
    """An ingress' batcher whose engine is a call, with so many lanes."""

    def __init__(self, call: Call, lanes: int, max_batch_size: int = 8, timeout_s: float = DEADLINE_S) -> None:
        told = describe(served(FakeEngine(max_batch_size)))
        self.batcher = Batcher(Limits(max_batch_size, 0.0, 64))
        self.model = remote_model(told, call, asyncio.get_running_loop(), timeout_s, engines=1)
        self._threads = [
            threading.Thread(target=self.batcher.serve, args=(self.model.engine,), daemon=True) for _ in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, value: int) -> asyncio.Task[Answer]:
        async def one() -> Answer:
            with self.batcher.reserve(1, DEADLINE_S) as places:
                self.batcher.put(places.slots[0], pixels(value))
                return await places.slots[0].answer

        return asyncio.create_task(one())

    async def end(self) -> None:
        self.batcher.stop()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, DEADLINE_S)


class Replica:
    """The far side: keeps the calls and answers each when it is told to."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.most_at_once = 0
        self._under_way = 0
        self._gate = asyncio.Semaphore(0)

    async def __call__(self, images: NDArray[np.uint8]) -> Reply:
        self.calls.append(values(images))
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        await self._gate.acquire()
        self._under_way -= 1
        return packed([answer(value) for value in values(images)])

    def release(self, calls: int) -> None:
        for _ in range(calls):
            self._gate.release()


async def test_while_as_many_calls_are_under_way_as_allowed_the_next_gathers_what_comes() -> None:
    replica = Replica()
    caller = Caller(replica, lanes=2)
    first = caller.ask(1)
    await until(lambda: len(replica.calls) == 1)
    second = caller.ask(2)
    await until(lambda: len(replica.calls) == 2)
    later = [caller.ask(value) for value in range(3, 8)]
    await until(lambda: caller.batcher.queued == 5)
    assert replica.calls == [[1], [2]]
    replica.release(1)
    await until(lambda: len(replica.calls) == 3)
    assert replica.calls[2] == [3, 4, 5, 6, 7]
    replica.release(2)
    found = await asyncio.gather(first, second, *later)
    assert [int(one.logits.argmax()) for one in found] == [1, 2, 3, 4, 5, 6, 7]
    assert replica.most_at_once == 2
    assert caller.batcher.counts == Counts(admitted=7, answered=7)
    await caller.end()


async def test_the_oldest_call_is_the_one_whose_age_tells_a_stall_and_busy_time_adds_up() -> None:
    replica = Replica()
    caller = Caller(replica, lanes=2)
    tasks = [caller.ask(1)]
    await until(lambda: len(replica.calls) == 1)
    oldest = caller.batcher.running_s
    tasks.append(caller.ask(2))
    await until(lambda: len(replica.calls) == 2)
    assert caller.batcher.running_s >= oldest > 0
    assert caller.batcher.busy_s >= caller.batcher.running_s
    replica.release(2)
    await asyncio.gather(*tasks)
    await until(lambda: caller.batcher.running_s == 0)
    await caller.end()


async def test_an_abandoned_batcher_ends_the_images_of_every_call() -> None:
    replica = Replica()
    caller = Caller(replica, lanes=2)
    tasks = [caller.ask(1)]
    await until(lambda: len(replica.calls) == 1)
    tasks.append(caller.ask(2))
    await until(lambda: len(replica.calls) == 2)
    caller.batcher.abandon("gone")
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [NotReady, NotReady]
    replica.release(2)
    await caller.end()


async def refused(error: RequestError, images: int = 3, timeout_s: float = DEADLINE_S) -> tuple[list[object], int]:
    """The ends of a call that is always refused with this error, and how often it was made."""
    calls = 0
    begun = asyncio.Event()

    async def call(pictures: NDArray[np.uint8]) -> Reply:
        nonlocal calls
        calls += 1
        await begun.wait()
        return error

    caller = Caller(call, lanes=1, max_batch_size=images)
    tasks = [caller.ask(0)]
    await until(lambda: calls == 1)
    tasks += [caller.ask(value) for value in range(1, images + 1)]
    await until(lambda: caller.batcher.queued == images)
    begun.set()
    ends: list[object] = list(await asyncio.gather(*tasks, return_exceptions=True))
    await caller.end()
    assert caller.batcher.counts == Counts(admitted=images + 1, failed=images + 1)
    return ends, calls


async def test_a_full_engine_refuses_every_image_of_a_call_at_once_and_in_its_own_words() -> None:
    ends, calls = await refused(QueueFull("full", retry_after_s=7))
    assert [(type(end), end.headers) for end in ends] == 4 * [(QueueFull, {"Retry-After": "7"})]  # type: ignore[attr-defined]
    assert len({id(end) for end in ends}) == 4, "each its own: they are raised in different requests"
    assert calls == 2


@pytest.mark.parametrize("error", [NotReady("lost"), Draining("leaving")])
async def test_a_call_that_was_not_carried_out_is_made_once_more_and_no_oftener(error: RequestError) -> None:
    ends, calls = await refused(error, images=1)
    assert [type(end) for end in ends] == 2 * [type(error)]
    assert calls == 4


async def test_a_call_whose_replica_was_lost_is_answered_by_another() -> None:
    replies: Iterator[Reply] = iter([NotReady("the replica has died"), packed([answer(5)])])

    async def call(images: NDArray[np.uint8]) -> Reply:
        return next(replies)

    caller = Caller(call, lanes=1)
    assert (await caller.ask(5)).logits.argmax() == 5
    await caller.end()


async def test_an_engine_that_never_answers_ends_its_images_with_not_ready() -> None:
    replica = Replica()
    caller = Caller(replica, lanes=1, timeout_s=0.02)
    [end] = await asyncio.gather(caller.ask(1), return_exceptions=True)
    assert isinstance(end, NotReady)
    assert "within 0.02 s" in end.detail
    await caller.end()


async def test_a_model_elsewhere_is_described_as_it_is_and_has_two_lanes_for_every_engine() -> None:
    here = served(FakeEngine())
    told = pickle.loads(pickle.dumps(describe(here)))
    replica = Replica()
    model = remote_model(told, replica, asyncio.get_running_loop(), 1.0, engines=3)
    assert model.lanes == 3 * CALLS_PER_ENGINE
    assert model.elsewhere
    for name in ("manifest", "config", "schedule", "grid", "parameters", "native_size"):
        assert getattr(model, name) == getattr(here, name)
    for name in ("kind", "device", "precision", "reason", "max_batch_size", "native_size"):
        assert getattr(model.engine, name) == getattr(here.engine, name)


async def test_warming_up_sends_one_blank_image_there_and_back() -> None:
    replica = Replica()
    replica.release(1)
    told = describe(served(FakeEngine()))
    engine = RemoteEngine(told.engine, replica, asyncio.get_running_loop(), DEADLINE_S)
    await asyncio.to_thread(engine.warm_up)
    assert replica.calls == [[0]]


def test_rows_survive_the_way_and_an_image_on_which_the_engine_failed_has_no_finite_logits() -> None:
    reply = pickle.loads(pickle.dumps(packed([answer(3), EngineFailed("no"), answer(4)])))
    output = unpacked(reply)
    assert output.logits.argmax(axis=1)[[0, 2]].tolist() == [3, 4]
    assert np.isfinite(output.logits).all(axis=1).tolist() == [True, False, True]
    assert output.source_maps.dtype == np.int64
    np.testing.assert_array_equal(output.source_maps, np.stack([SOURCE_MAPS] * 3))
    np.testing.assert_array_equal(output.frequency_scores, np.stack([SCORES] * 3))


def test_a_call_without_a_single_answer_is_refused_with_its_first_error() -> None:
    error = EngineFailed("no")
    assert packed([error, EngineFailed("neither")]) is error


def test_a_bug_is_no_reply() -> None:
    with pytest.raises(ZeroDivisionError):
        packed([answer(1), ZeroDivisionError()])


@pytest.mark.parametrize("kind", every_problem(), ids=lambda kind: kind.__name__)
def test_every_error_travels_with_its_words_headers_and_extras(kind: type[RequestError]) -> None:
    error = kind("why", extra={"more": 1})
    error.headers["Retry-After"] = "9"
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.detail, back.headers, back.extra) == (kind, "why", {"Retry-After": "9"}, {"more": 1})


async def engine_replica(double: FakeEngine, **settings: int) -> Engine:
    """A warm replica, made as Ray makes one."""
    replica = Engine.__new__(Engine)
    await replica.__init__(Settings(**settings), loader(double))
    return replica


async def test_an_engine_replica_answers_calls_of_many_ingresses_and_refuses_what_it_has_no_room_for() -> None:
    double = FakeEngine(max_batch_size=4)
    replica = await engine_replica(double, max_batch_size=4, max_queue_size=4)
    assert double.warm
    double.hold()
    first = asyncio.create_task(replica.run(np.stack([pixels(1)])))
    await asyncio.to_thread(double.entered.acquire)
    others = [asyncio.create_task(replica.run(np.stack([pixels(2), pixels(value)]))) for value in (POISON, 4)]
    await asyncio.sleep(0)
    full = await replica.run(np.stack([pixels(5)]))
    assert isinstance(full, QueueFull)
    double.release()
    one, *two = [unpacked(reply) for reply in await asyncio.gather(first, *others)]  # type: ignore[arg-type]
    assert one.logits.argmax(axis=1).tolist() == [1]
    assert [bool(np.isfinite(row).all()) for output in two for row in output.logits] == [True, False, True, True]
    assert two[1].logits.argmax(axis=1).tolist() == [2, 4]
    await replica.check_health()
    await replica._service.close()


async def test_an_engine_replica_whose_batches_all_fail_is_not_healthy_until_one_succeeds() -> None:
    double = FakeEngine()
    replica = await engine_replica(double)
    double.failures_left = 3
    for _ in range(3):
        assert isinstance(await replica.run(np.stack([pixels(1)])), EngineFailed)
    await until(lambda: replica._service.batcher.failing)
    with pytest.raises(NotReady):
        await replica.check_health()  # and a blank image probes the engine
    await until(lambda: not replica._service.batcher.failing)
    await replica.check_health()
    await replica._service.close()


async def test_an_app_that_starts_warm_fails_to_start_where_the_model_cannot_be_loaded() -> None:
    def load(settings: Settings) -> object:
        raise StartupError("no such checkpoint")

    app = create_app(Settings(), load, start_warm=True)  # type: ignore[arg-type]
    with pytest.raises(StartupError, match="no such checkpoint"):
        async with app.router.lifespan_context(app):
            pass


async def test_an_app_that_starts_warm_is_ready_once_it_has_started() -> None:
    app = create_app(Settings(), loader(FakeEngine()), start_warm=True)
    async with app.router.lifespan_context(app):
        assert app.state.service.ready


# --- metrics ---


class OneGauge(Collector):
    def __init__(self, value: float) -> None:
        self._value = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("freqmerge_queue_images", "waiting", labels=["kind"])
        family.add_metric(["x"], self._value)
        yield family


def test_the_metrics_of_replicas_stand_side_by_side_under_one_heading() -> None:
    gathered = Gathered({name: families(OneGauge(value), engine=False) for name, value in (("a", 1), ("b", 2))})
    text, media_type = exposition(gathered, "")
    assert media_type.startswith("text/plain")
    assert text.decode() == (
        "# HELP freqmerge_queue_images waiting\n"
        "# TYPE freqmerge_queue_images gauge\n"
        'freqmerge_queue_images{kind="x",replica="a"} 1.0\n'
        'freqmerge_queue_images{kind="x",replica="b"} 2.0\n'
    )


def test_every_metric_is_told_by_ingresses_or_by_engines_and_only_queues_by_both() -> None:
    registry = create_app(Settings(), loader(FakeEngine())).state.service.metrics.registry
    by_engine, by_ingress = (
        {family.name for family in families(registry, engine=engine) if family.name.startswith("freqmerge")}
        for engine in (True, False)
    )
    ours = {family.name for family in registry.collect() if family.name.startswith("freqmerge")}
    assert by_engine | by_ingress == ours
    assert by_engine & by_ingress == BY_BOTH
    assert by_engine - by_ingress == BY_ENGINES
    assert len(ours) == len(metric_names(registry))
    assert "process_cpu_seconds" in {family.name for family in families(registry, engine=True)}


def test_gathered_metrics_read_the_same_as_those_of_a_single_process_but_for_the_label() -> None:
    registry = create_app(Settings(), loader(FakeEngine())).state.service.metrics.registry
    own = [family for family in families(registry, engine=False) if family.name == "freqmerge_images"]
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        alone = exposition(registry, accept)[0].decode()
        many = exposition(Gathered({"a": own}), accept)[0].decode()
        wanted = [line for line in alone.splitlines() if line.startswith("freqmerge_images_total{")]
        found = [line for line in many.splitlines() if line.startswith("freqmerge_images_total{")]
        assert [line.replace(',replica="a"', "") for line in found] == wanted
        assert len(wanted) == 4


# --- what Ray is told ---


@pytest.mark.parametrize("changes", [{}, {"max_batch_size": 128}, {"engine_replicas": 8, "ingress_max_replicas": 64}])
def test_a_replica_takes_twice_a_batch_and_more_than_its_own_queue_holds(changes: dict[str, int]) -> None:
    settings = Settings(**changes)
    engine, ingress = plan.engine_options(settings, 1), plan.ingress_options(settings)
    assert engine["max_ongoing_requests"] >= 2 * settings.max_batch_size
    assert engine["max_ongoing_requests"] >= plan.calls_under_way(settings) * settings.ingress_max_replicas
    assert ingress["max_ongoing_requests"] >= 2 * settings.max_batch_size
    assert ingress["max_ongoing_requests"] > settings.max_queue_size
    assert ingress["max_queued_requests"] > settings.max_queue_size, "bounded, but not the first to refuse"
    assert ingress["backpressure_config"]["status_code"] == 429


def test_a_replica_that_is_to_end_has_the_time_that_the_settings_give() -> None:
    settings = Settings(shutdown_delay_s=5, shutdown_timeout_s=40)
    for options in (plan.engine_options(settings, 0), plan.ingress_options(settings)):
        assert options["graceful_shutdown_wait_loop_s"] == 5
        assert options["graceful_shutdown_timeout_s"] == 45


@pytest.mark.parametrize(("request_s", "shutdown_s", "longest_s"), [(30, 20, 10), (5, 20, 5), (30, 120, 30)])
def test_a_call_ends_before_ray_ends_the_ingress_that_made_it(
    request_s: float, shutdown_s: int, longest_s: float
) -> None:
    settings = Settings(request_timeout_s=request_s, shutdown_timeout_s=shutdown_s)
    assert plan.longest_call_s(settings) == longest_s
    assert longest_s < plan.ingress_options(settings)["graceful_shutdown_timeout_s"]


def test_fewer_replicas_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(SettingsError, match="FREQMERGE_INGRESS_MAX_REPLICAS=2 is not valid: expected at least"):
        read_settings(ingress_min_replicas=3, ingress_max_replicas=2)
