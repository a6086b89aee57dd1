"""The batcher's five clauses (see `service.batcher`), with a thread and an event loop but without a single sleep."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.batcher import Answer, Batcher, Counts
from service.errors import DeadlineExceeded, Draining, EngineFailed, NotReady, QueueFull, RequestError
from service.waiting import Limits
from tests.service.conftest import DEADLINE_S, entered, until
from tests.service.doubles import POISON, FakeEngine, pixels

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
        except BaseException:  # as service.runtime does
            self.batcher.abandon("the engine has died")

    def ask(self, value: int, timeout_s: float = DEADLINE_S) -> asyncio.Task[Answer]:
        """A caller with one image; its answer's most probable class is `value`."""

        async def call() -> Answer:
            async with self.batcher.admit(timeout_s) as slot:
                return await slot.run(pixels(value))

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
    assert answer.frequency_score.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
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
    async with bench.batcher.admit(1000):
        assert bench.batcher.queued == 1
    assert bench.batcher.queued == 0
    assert bench.batcher.counts == Counts(admitted=1, cancelled=1)


async def test_an_image_whose_decoding_fails_frees_its_place_and_counts_as_failed(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        async with bench.batcher.admit(1000):
            _ = 1 / 0
    assert bench.batcher.queued == 0
    assert bench.batcher.counts == Counts(admitted=1, failed=1)


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


async def test_a_deadline_also_ends_what_a_caller_does_before_it_has_pixels(bench: Bench) -> None:
    with pytest.raises(DeadlineExceeded):
        async with bench.batcher.admit(0.01):
            await asyncio.Event().wait()
    assert bench.batcher.counts == Counts(admitted=1, expired=1)


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
        async with bench.batcher.admit(1000) as slot:
            return await slot.run(pixels(9)[:, :-1])

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
        async with bench.batcher.admit(1000):
            await asyncio.Event().wait()

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
    for _ in range(10):
        batcher._queue.reserve(1e9)
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
    async with bench.batcher.admit(1000) as slot:
        bench.batcher.refuse_new()
        assert label(await slot.run(pixels(3))) == 3


async def test_a_caller_accepted_before_shutdown_is_still_admitted_but_not_by_a_full_queue(bench: Bench) -> None:
    bench.batcher.check()
    bench.batcher.refuse_new()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(bench.batcher.admit(1000, accepted=True))
        with pytest.raises(QueueFull):
            await stack.enter_async_context(bench.batcher.admit(1000, accepted=True))


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
    async with bench.batcher.admit(1000) as decoding:
        engine.release()
        assert await labels([running, *waiting]) == [NotReady, NotReady, NotReady]
        with pytest.raises(NotReady):
            await decoding.run(pixels(4))
    with pytest.raises(NotReady):
        await bench.ask(5)
    assert bench.batcher.counts == Counts(admitted=4, failed=3, cancelled=1)
    await bench.close()


# --- all of it at once ---

actions = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 99)),
        st.tuples(st.just("poison"), st.just(POISON)),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("abandon while decoding"), st.just(0)),
        st.tuples(st.just("step"), st.just(0)),
        st.tuples(st.just("yield"), st.integers(1, 3)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions, st.integers(1, 5), st.integers(1, 12))
def test_under_random_cancellations_the_counters_balance_and_answers_return_to_their_askers(
    steps: list[tuple[str, int]], max_batch_size: int, max_queue_size: int
) -> None:
    asyncio.run(_play(steps, Limits(max_batch_size, 0.0, max_queue_size)))


async def _play(steps: list[tuple[str, int]], limits: Limits) -> None:
    bench = Bench(FakeEngine(), limits)
    bench.engine.hold()
    asked: list[tuple[int, asyncio.Task[Answer]]] = []
    refused = 0
    for name, value in steps:
        if name in ("ask", "poison"):
            asked.append((value, bench.ask(value)))
        elif name == "cancel" and asked:
            asked[value % len(asked)][1].cancel()
        elif name == "abandon while decoding":
            try:
                async with bench.batcher.admit(1000):
                    await asyncio.sleep(0)
            except RequestError:
                refused += 1
        elif name == "step":
            bench.engine.step()
        else:
            for _ in range(value):
                await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.engine.release()
    ends = await all_of([task for _, task in asked])
    await bench.close()
    for (value, _), end in zip(asked, ends, strict=True):
        if isinstance(end, Answer):
            assert label(end) == value, "an answer went to somebody else"
        else:
            assert isinstance(end, asyncio.CancelledError | EngineFailed | QueueFull)
            assert not isinstance(end, EngineFailed) or value == POISON, "a sound image failed"
    counts = bench.batcher.counts
    assert counts.admitted == counts.answered + counts.failed + counts.cancelled + counts.expired
    assert counts.answered == sum(isinstance(end, Answer) for end in ends)
    assert bench.batcher.queued == 0
