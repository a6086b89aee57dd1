"""The batcher's five clauses (see `service.batching.batcher`), with a thread and an event loop, without a sleep."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.batching.batcher import Batcher, Counts, Reservation
from service.batching.waiting import Answer, Limits
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    NotReady,
    QueueFull,
    Undecodable,
)
from tests.service.conftest import DEADLINE_S, entered, until
from tests.support.doubles import POISON, FakeEngine, pixels

pytestmark = pytest.mark.anyio


class Bench:
    """A batcher whose engine runs on a thread of its own."""

    def __init__(self, engine: FakeEngine, limits: Limits, clock: Callable[[], float] | None = None) -> None:
        self.engine = engine
        self.sizes: list[int] = []
        extra = {"clock": clock} if clock else {}
        self.batcher = Batcher(limits, on_batch=self.sizes.append, **extra)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.batcher.serve(self.engine)
        except BaseException:  # as service.runtime.engine_thread does
            self.batcher.abandon("the engine has died")

    def ask(self, value: int, timeout_s: float = DEADLINE_S) -> asyncio.Task[Answer]:
        """A caller with one image; its answer's most probable class is `value`."""

        async def call() -> Answer:
            with self.batcher.reserve(1, timeout_s) as places:
                self.batcher.put(places.slots[0], pixels(value))
                return await places.slots[0].answer

        return asyncio.create_task(call())

    async def waiting(self, count: int) -> None:
        """Returns when that many images hold a place."""
        await until(lambda: self.batcher.queued == count)

    async def close(self) -> None:
        self.engine.release()
        self.batcher.refuse_new()
        async with asyncio.timeout(DEADLINE_S):
            await self.batcher.drained()
        self.batcher.stop()
        await asyncio.to_thread(self.thread.join, DEADLINE_S)
        assert not self.thread.is_alive()


@pytest.fixture
async def bench(engine: FakeEngine) -> AsyncIterator[Bench]:
    made = Bench(engine, Limits(max_batch_size=4, max_queue_size=6))
    yield made
    await made.close()


def label(answer: Answer) -> int:
    return int(answer.logits.argmax())


async def all_of(tasks: list[asyncio.Task[Answer]]) -> list[Answer | BaseException]:
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def labels(tasks: list[asyncio.Task[Answer]]) -> list[int | type[BaseException]]:
    """What each caller got: the class of its answer, or the type of its error."""
    return [label(end) if isinstance(end, Answer) else type(end) for end in await all_of(tasks)]


# --- how batches are cut ---


async def test_a_lone_image_runs_at_once_in_a_batch_of_one(bench: Bench) -> None:
    answer = await bench.ask(5)
    assert (label(answer), answer.batch_size) == (5, 1)
    assert answer.score("lfgm").tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert answer.score("energy").tolist() == pytest.approx([1.0, 0.1, 0.3, 0.5, 0.7, 0])
    assert answer.source_map.tolist() == [0, 0, 1, 2, 2, 3]


async def test_images_that_wait_while_a_batch_runs_go_together_oldest_first(bench: Bench) -> None:
    bench.engine.hold()
    first = bench.ask(1)
    await entered(bench.engine)
    later = [bench.ask(value) for value in (2, 3, 4, 5, 6)]
    await bench.waiting(5)
    bench.engine.release()
    assert await labels([first, *later]) == [1, 2, 3, 4, 5, 6]
    assert bench.engine.batches == [[1], [2, 3, 4, 5], [6]]
    assert bench.sizes == [1, 4, 1]


async def test_the_engines_own_limit_wins_over_a_larger_setting() -> None:
    bench = Bench(FakeEngine(max_batch_size=2), Limits(max_batch_size=32))
    bench.engine.hold()
    asked = [bench.ask(1)]
    await entered(bench.engine)
    asked += [bench.ask(value) for value in (2, 3, 4, 5)]
    await bench.waiting(4)
    await bench.close()
    assert await labels(asked) == [1, 2, 3, 4, 5]
    assert bench.engine.batches == [[1], [2, 3], [4, 5]]


# --- clause 1: a request ends exactly once ---


async def test_every_answer_returns_to_its_asker(bench: Bench) -> None:
    for start in range(0, 60, 6):
        asked = list(range(start, start + 6))
        assert await labels([bench.ask(value) for value in asked]) == asked
    assert bench.batcher.counts == Counts(admitted=60, answered=60)


async def test_a_caller_that_leaves_while_its_batch_runs_neither_hangs_nor_fails_the_others(
    bench: Bench,
) -> None:
    bench.engine.hold()
    blocker = bench.ask(1)
    await entered(bench.engine)
    together = [bench.ask(value) for value in (2, 3, 4)]
    await bench.waiting(3)
    bench.engine.step()
    await entered(bench.engine)
    together[1].cancel()
    assert await labels([blocker]) == [1]
    await until(together[1].done)
    bench.engine.release()
    assert await labels(together) == [2, asyncio.CancelledError, 4]
    assert bench.batcher.counts == Counts(admitted=4, answered=3, cancelled=1)


async def test_an_image_that_is_admitted_but_never_run_counts_as_cancelled(bench: Bench) -> None:
    with bench.batcher.reserve(1, 1000):
        assert bench.batcher.queued == 1
    assert bench.batcher.queued == 0
    assert bench.batcher.counts == Counts(admitted=1, cancelled=1)


async def test_an_image_whose_decoding_fails_frees_its_place_at_once_and_counts_as_failed(bench: Bench) -> None:
    with bench.batcher.reserve(2, 1000) as places:
        spoilt, fine = places.slots
        await asyncio.to_thread(bench.batcher.fail, spoilt, Undecodable("expected a picture, found noise"))
        assert bench.batcher.queued == 1
        bench.batcher.put(fine, pixels(3))
        first, second = await places.outcomes()
    assert isinstance(first, Undecodable)
    assert isinstance(second, Answer)
    assert label(second) == 3
    assert bench.batcher.counts == Counts(admitted=2, answered=1, failed=1)


async def test_a_block_that_raises_counts_its_images_as_failed(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError), bench.batcher.reserve(3, 1000):
        _ = 1 / 0
    assert bench.batcher.queued == 0
    assert bench.batcher.counts == Counts(admitted=3, failed=3)


# --- clause 2: cancelled and expired images leave before their batch runs ---


async def test_an_image_cancelled_while_it_waits_never_reaches_the_engine(bench: Bench) -> None:
    bench.engine.hold()
    blocker = bench.ask(1)
    await entered(bench.engine)
    waiting = [bench.ask(value) for value in (2, 3, 4)]
    await bench.waiting(3)
    waiting[0].cancel()
    await bench.waiting(2)
    bench.engine.release()
    assert await labels([blocker, *waiting]) == [1, asyncio.CancelledError, 3, 4]
    assert bench.engine.batches == [[1], [3, 4]]
    assert bench.batcher.counts == Counts(admitted=4, answered=3, cancelled=1)


async def test_an_image_that_expires_while_it_waits_never_reaches_the_engine(engine: FakeEngine) -> None:
    now = [0.0]
    bench = Bench(engine, Limits(max_batch_size=4), clock=lambda: now[0])
    engine.hold()
    blocker = bench.ask(1, timeout_s=1000.0)
    await entered(engine)
    late, fine = bench.ask(2, timeout_s=100.0), bench.ask(3, timeout_s=1000.0)
    await bench.waiting(2)
    now[0] = 100.0
    engine.release()
    assert await labels([blocker, late, fine]) == [1, DeadlineExceeded, 3]
    assert engine.batches == [[1], [3]]
    assert bench.batcher.counts == Counts(admitted=3, answered=2, expired=1)
    await bench.close()


async def test_a_caller_whose_time_is_over_is_told_while_the_engine_is_still_busy(bench: Bench) -> None:
    bench.engine.hold()
    running = bench.ask(1, timeout_s=0.02)
    with pytest.raises(DeadlineExceeded, match=r"expected an answer within 0\.02 s"):
        await running
    assert bench.engine.batches == []
    assert bench.batcher.counts == Counts(admitted=1, expired=1)


async def test_a_deadline_also_ends_an_image_that_is_still_being_decoded(bench: Bench) -> None:
    with pytest.raises(DeadlineExceeded), bench.batcher.reserve(1, 0.01) as places:
        await places.slots[0].answer
    assert bench.batcher.counts == Counts(admitted=1, expired=1)


async def test_pixels_that_come_after_their_caller_has_left_never_reach_the_engine(bench: Bench) -> None:
    with bench.batcher.reserve(1, 1000) as places:
        assert places.slots[0].wanted
    assert not places.slots[0].wanted
    await asyncio.to_thread(bench.batcher.put, places.slots[0], pixels(4))
    assert await labels([bench.ask(5)]) == [5]
    assert bench.engine.batches == [[5]]
    assert bench.batcher.queued == 0


async def test_the_images_of_a_client_that_has_left_are_dropped_before_they_run(bench: Bench) -> None:
    bench.engine.hold()
    blocker = bench.ask(1)
    await entered(bench.engine)
    with bench.batcher.reserve(2, 1000) as places:
        for slot, value in zip(places.slots, (2, 3), strict=True):
            bench.batcher.put(slot, pixels(value))
        places.client_left()
        ends = await places.outcomes()
    assert [type(end) for end in ends] == [ClientGone, ClientGone]
    bench.engine.release()
    assert await labels([blocker]) == [1]
    assert bench.engine.batches == [[1]]
    assert bench.batcher.counts == Counts(admitted=3, answered=1, cancelled=2)


# --- several images of one request ---


async def test_the_images_of_one_request_share_batches_and_come_back_in_order(bench: Bench) -> None:
    with bench.batcher.reserve(6, DEADLINE_S) as places:
        bench.engine.hold()
        for slot, value in zip(places.slots, range(6), strict=True):
            bench.batcher.put(slot, pixels(value))
        bench.engine.release()
        ends = await places.outcomes()
    assert [label(end) for end in ends if isinstance(end, Answer)] == [0, 1, 2, 3, 4, 5]
    assert len(bench.engine.batches) <= 3
    assert bench.batcher.counts == Counts(admitted=6, answered=6)


async def test_those_that_are_done_in_time_keep_their_answers(bench: Bench) -> None:
    with bench.batcher.reserve(2, 0.05) as places:
        bench.batcher.put(places.slots[0], pixels(8))
        first, second = await places.outcomes()
    assert isinstance(first, Answer)
    assert isinstance(second, DeadlineExceeded)
    assert bench.batcher.counts == Counts(admitted=2, answered=1, expired=1)


async def test_a_request_for_more_places_than_are_free_gets_none(bench: Bench) -> None:
    with bench.batcher.reserve(4, 1000):
        with pytest.raises(QueueFull, match="room for 3 of 6 images, found 4 waiting"):
            bench.batcher.check(3)
        with pytest.raises(QueueFull):
            bench.batcher.reserve(3, 1000)
        assert bench.batcher.queued == 4
        bench.batcher.check(2)
    assert bench.batcher.counts == Counts(admitted=4, cancelled=4), "a refused image was never admitted"


# --- clause 3: one bad image fails alone ---


async def test_a_poisoned_image_fails_alone(bench: Bench) -> None:
    bench.engine.hold()
    blocker = bench.ask(1)
    await entered(bench.engine)
    batch = [bench.ask(value) for value in (2, POISON, 4, 5)]
    await bench.waiting(4)
    bench.engine.release()
    assert await labels([blocker, *batch]) == [1, 2, EngineFailed, 4, 5]
    assert bench.engine.batches == [[1], [2], [4, 5]]
    assert bench.batcher.counts == Counts(admitted=5, answered=4, failed=1)
    assert not bench.batcher.failing


async def test_a_caller_that_left_is_not_run_again_when_its_batch_is_halved(bench: Bench) -> None:
    bench.engine.hold()
    blocker = bench.ask(1)
    await entered(bench.engine)
    batch = [bench.ask(value) for value in (2, 3, 4)]
    await bench.waiting(3)
    bench.engine.step()
    await entered(bench.engine)
    bench.engine.failures_left = 1
    batch[0].cancel()
    await until(batch[0].done)
    bench.engine.release()
    assert await labels([blocker, *batch]) == [1, asyncio.CancelledError, 3, 4]
    assert bench.engine.batches == [[1], [3, 4]]


async def test_an_image_without_a_finite_answer_fails_alone(bench: Bench) -> None:
    bench.engine.nan_for = 3
    assert await labels([bench.ask(value) for value in (2, 3, 4)]) == [2, EngineFailed, 4]


async def test_an_image_of_the_wrong_shape_fails_alone(bench: Bench) -> None:
    async def misshapen() -> Answer:
        with bench.batcher.reserve(1, 1000) as places:
            bench.batcher.put(places.slots[0], pixels(9)[:, :-1])
            return await places.slots[0].answer

    bench.engine.hold()
    blocker = bench.ask(1)
    await entered(bench.engine)
    tasks = [bench.ask(2), asyncio.create_task(misshapen()), bench.ask(4)]
    await bench.waiting(3)
    bench.engine.release()
    assert await labels([blocker, *tasks]) == [1, 2, EngineFailed, 4]


async def test_an_engine_that_raises_once_costs_nobody_an_answer(bench: Bench) -> None:
    bench.engine.hold()
    blocker = bench.ask(1)
    await entered(bench.engine)
    batch = [bench.ask(value) for value in (2, 3, 4)]
    await bench.waiting(3)
    bench.engine.step()
    assert await labels([blocker]) == [1]
    bench.engine.failures_left = 1
    bench.engine.release()
    assert await labels(batch) == [2, 3, 4]


async def test_an_engine_that_always_raises_fails_its_callers_and_the_loop_goes_on(bench: Bench) -> None:
    bench.engine.failures_left = 1000
    for value in (1, 2, 3):
        assert await labels([bench.ask(value)]) == [EngineFailed]
    await until(lambda: bench.batcher.failing)
    bench.engine.failures_left = 0
    assert await labels([bench.ask(4)]) == [4]
    await until(lambda: not bench.batcher.failing)


async def test_what_a_caller_hears_of_an_engine_failure_tells_nothing_of_the_engine(bench: Bench) -> None:
    bench.engine.failures_left = 1
    with pytest.raises(EngineFailed) as caught:
        await bench.ask(1)
    assert "told to fail" not in str(caught.value)
    assert caught.value.__cause__ is None


# --- clause 4: the queue is bounded, counts images, and refuses at once ---


async def test_a_full_queue_refuses_at_once_and_says_when_to_return(bench: Bench) -> None:
    bench.engine.hold()
    running = bench.ask(1)
    await entered(bench.engine)
    waiting = [bench.ask(value) for value in (2, 3, 4, 5, 6, 7)]
    await bench.waiting(6)
    with pytest.raises(QueueFull) as refused:
        await bench.ask(8)
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) >= 1
    assert "fewer than 6 waiting images, found 6" in refused.value.detail
    bench.engine.release()
    assert await labels([running, *waiting]) == [1, 2, 3, 4, 5, 6, 7]
    assert bench.batcher.counts == Counts(admitted=7, answered=7), "a refused image was never admitted"


async def test_images_that_are_still_being_decoded_hold_a_place(bench: Bench) -> None:
    async def decode() -> None:
        with bench.batcher.reserve(1, 1000) as places:
            await places.slots[0].answer

    decoding = [asyncio.create_task(decode()) for _ in range(6)]
    await bench.waiting(6)
    with pytest.raises(QueueFull):
        await bench.ask(1)
    for task in decoding:
        task.cancel()
    await bench.waiting(0)
    assert await labels([bench.ask(1)]) == [1]


async def test_a_place_that_a_cancelled_image_leaves_can_be_taken_at_once(bench: Bench) -> None:
    bench.engine.hold()
    running = bench.ask(1)
    await entered(bench.engine)
    waiting = [bench.ask(value) for value in range(2, 8)]
    await bench.waiting(6)
    waiting[0].cancel()
    await bench.waiting(5)
    late = bench.ask(9)
    bench.engine.release()
    assert await labels([running, late]) == [1, 9]
    await all_of(waiting)


async def test_a_queue_of_one_and_a_batch_of_one_still_serve_everybody() -> None:
    bench = Bench(FakeEngine(), Limits(max_batch_size=1, max_queue_size=1))
    assert [await labels([bench.ask(value)]) for value in (1, 2, 3)] == [[1], [2], [3]]
    await bench.close()


def test_the_time_to_return_follows_the_measured_rate_and_the_length_of_the_queue() -> None:
    batcher = Batcher(Limits(max_queue_size=100))
    batcher._image_s = 0.5
    batcher._queue.reserve(10)
    assert batcher.retry_after_s() == 5.0


# --- clause 5: shutdown drains, and death is told ---


async def test_shutdown_answers_what_is_admitted_and_refuses_what_comes_later(bench: Bench) -> None:
    bench.engine.hold()
    admitted = [bench.ask(1)]
    await entered(bench.engine)
    admitted += [bench.ask(value) for value in (2, 3)]
    await bench.waiting(2)
    bench.batcher.refuse_new()
    with pytest.raises(Draining):
        await bench.ask(4)
    bench.engine.release()
    await bench.close()
    assert await labels(admitted) == [1, 2, 3]


async def test_an_image_that_is_being_decoded_at_shutdown_is_still_answered(bench: Bench) -> None:
    with bench.batcher.reserve(1, 1000) as places:
        bench.batcher.refuse_new()
        bench.batcher.put(places.slots[0], pixels(3))
        assert label(await places.slots[0].answer) == 3


async def test_a_caller_accepted_before_shutdown_is_still_admitted_but_not_by_a_full_queue(bench: Bench) -> None:
    bench.batcher.check()
    bench.batcher.refuse_new()
    with bench.batcher.reserve(6, 1000, accepted=True), pytest.raises(QueueFull):
        bench.batcher.reserve(1, 1000, accepted=True)


async def test_a_held_batch_runs_when_the_queue_closes() -> None:
    bench = Bench(FakeEngine(), Limits(max_batch_size=4, max_queue_delay_s=1000.0))
    held = [bench.ask(1), bench.ask(2)]
    await bench.waiting(2)
    bench.batcher.stop()
    assert await labels(held) == [1, 2]
    await bench.close()


async def test_the_death_of_the_engine_thread_reaches_everybody_who_waits(engine: FakeEngine) -> None:
    def die(values: list[int]) -> None:
        raise SystemExit

    bench = Bench(engine, Limits(max_batch_size=1, max_queue_size=6))
    engine.fault = die
    engine.hold()
    running = bench.ask(1)
    await entered(engine)
    waiting = [bench.ask(2), bench.ask(3)]
    await bench.waiting(2)
    with bench.batcher.reserve(1, 1000) as decoding:
        engine.release()
        assert await labels([running, *waiting]) == [NotReady, NotReady, NotReady]
        bench.batcher.put(decoding.slots[0], pixels(4))
        with pytest.raises(NotReady):
            await decoding.slots[0].answer
    with pytest.raises(NotReady):
        await bench.ask(5)
    assert bench.batcher.counts == Counts(admitted=4, failed=4)
    await bench.close()


# --- all of it at once ---

Ends = list[Answer | Exception]

actions = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.lists(st.integers(0, 99) | st.just(POISON), min_size=1, max_size=5)),
        st.tuples(st.just("ask with little time"), st.lists(st.integers(0, 99), min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["cancel", "hang up", "fail decoding"]), st.integers(0, 40)),
        st.tuples(st.just("abandon while decoding"), st.integers(1, 3)),
        st.tuples(st.just("raise once"), st.just(0)),
        st.tuples(st.just("step"), st.just(0)),
        st.tuples(st.just("yield"), st.integers(1, 3)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions, st.integers(1, 5), st.integers(1, 12))
def test_under_random_cancellations_the_counters_balance_and_answers_return_to_their_askers(
    steps: list[tuple[str, Any]], max_batch_size: int, max_queue_size: int
) -> None:
    asyncio.run(_play(steps, Limits(max_batch_size, 0.0, max_queue_size)))


class Caller:
    """A request with several images, as the pipeline makes it; the images in `spoilt` fail to decode."""

    def __init__(self, bench: Bench, values: list[int], timeout_s: float, spoilt: int | None = None) -> None:
        self.values = values
        self.places: Reservation | None = None
        self.bench = bench
        self.task = asyncio.create_task(self._ask(timeout_s, spoilt))

    async def _ask(self, timeout_s: float, spoilt: int | None) -> Ends:
        batcher = self.bench.batcher
        with batcher.reserve(len(self.values), timeout_s) as self.places:
            for place, (slot, value) in enumerate(zip(self.places.slots, self.values, strict=True)):
                if place == spoilt:
                    await asyncio.to_thread(batcher.fail, slot, Undecodable("expected a picture, found noise"))
                else:
                    batcher.put(slot, pixels(value))
            return await self.places.outcomes()


class Play:
    """A batcher whose engine is held, and the callers so far; every action of the random test is a method."""

    def __init__(self, limits: Limits) -> None:
        self.bench = Bench(FakeEngine(), limits)
        self.bench.engine.hold()
        self.callers: list[Caller] = []
        self.actions: dict[str, Callable[[Any], None]] = {
            "ask": lambda values: self.ask(values, DEADLINE_S),
            "ask with little time": lambda values: self.ask(values, 0.0),
            "fail decoding": lambda place: self.ask([1, 2, 3], DEADLINE_S, place % 3),
            "cancel": self.cancel,
            "hang up": self.hang_up,
            "raise once": lambda _: setattr(self.bench.engine, "failures_left", 1),
            "step": lambda _: self.bench.engine.step(),
        }

    def ask(self, values: list[int], timeout_s: float, spoilt: int | None = None) -> None:
        self.callers.append(Caller(self.bench, values, timeout_s, spoilt))

    def cancel(self, number: int) -> None:
        if self.callers:
            self.callers[number % len(self.callers)].task.cancel()

    def hang_up(self, number: int) -> None:
        if self.callers and (places := self.callers[number % len(self.callers)].places) is not None:
            places.client_left()

    async def act(self, name: str, value: Any) -> None:
        if name == "abandon while decoding":
            with contextlib.suppress(QueueFull), self.bench.batcher.reserve(value, DEADLINE_S):
                await asyncio.sleep(0)
        elif name == "yield":
            for _ in range(value):
                await asyncio.sleep(0)
        else:
            self.actions[name](value)

    async def end(self) -> list[Ends | BaseException]:
        """What every caller got."""
        await asyncio.sleep(0)
        self.bench.engine.release()
        async with asyncio.timeout(DEADLINE_S):
            ends = await asyncio.gather(*(caller.task for caller in self.callers), return_exceptions=True)
        await self.bench.close()
        return ends


async def _play(steps: list[tuple[str, Any]], limits: Limits) -> None:
    play = Play(limits)
    for name, value in steps:
        await play.act(name, value)
    answered = 0
    for caller, ends in zip(play.callers, await play.end(), strict=True):
        if isinstance(ends, BaseException):
            assert isinstance(ends, asyncio.CancelledError | QueueFull)
            continue
        for value, end in zip(caller.values, ends, strict=True):
            assert isinstance(end, Answer | EngineFailed | DeadlineExceeded | ClientGone | Undecodable)
            assert not isinstance(end, Answer) or label(end) == value, "an answer went to somebody else"
            answered += isinstance(end, Answer)
    counts = play.bench.batcher.counts
    assert counts.admitted == counts.answered + counts.failed + counts.cancelled + counts.expired
    assert counts.answered == answered
    assert play.bench.batcher.queued == 0
