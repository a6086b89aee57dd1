"""The queue as plain arithmetic: no thread, no event loop, no clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.waiting import Limits, Slot, Stage, WaitingQueue, batch_size_now

FOREVER = 1e9
PIXELS = np.zeros((3, 1, 1), np.uint8)


class Slots:
    """Makes slots; their futures belong to an event loop that never runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def new(self, deadline: float = FOREVER) -> Slot:
        return Slot(deadline, 1.0, self._loop.create_future())

    def waiting(self, count: int, limits: Limits | None = None, now: float = 0.0) -> tuple[WaitingQueue, list[Slot]]:
        """A queue in which so many images wait, and their slots, oldest first."""
        queue = WaitingQueue(limits or Limits(max_batch_size=4, max_queue_size=8))
        slots = [self.new() for _ in range(count)]
        queue.reserve(count)
        for slot in slots:
            queue.put(slot, PIXELS, now)
        return queue, slots


@pytest.fixture(scope="module")
def slots() -> Iterator[Slots]:
    loop = asyncio.new_event_loop()
    yield Slots(loop)
    loop.close()


@pytest.mark.parametrize(
    ("waiting", "age_s", "delay_s", "closing", "taken"),
    [
        (0, 0.0, 0.0, False, 0),
        (1, 0.0, 0.0, False, 1),
        (3, 0.0, 0.0, False, 3),
        (4, 0.0, 0.0, False, 4),
        (9, 0.0, 0.0, False, 4),
        (3, 0.01, 0.02, False, 0),
        (3, 0.02, 0.02, False, 3),
        (4, 0.0, 0.02, False, 4),
        (3, 0.0, 0.02, True, 3),
    ],
)
def test_a_free_engine_takes_what_waits_unless_a_delay_may_fill_the_batch(
    waiting: int, age_s: float, delay_s: float, closing: bool, taken: int
) -> None:
    assert batch_size_now(waiting, age_s, Limits(4, delay_s), closing) == taken


def test_a_batch_takes_the_oldest_first_and_leaves_the_rest(slots: Slots) -> None:
    queue, waiting = slots.waiting(5)
    assert queue.cut(now=1.0).batch == waiting[:4]
    assert queue.cut(now=1.0).batch == waiting[4:]
    assert queue.cut(now=1.0).batch == []


def test_oldest_counts_from_when_the_pixels_were_ready_not_from_admission(slots: Slots) -> None:
    queue = WaitingQueue(Limits())
    slow, quick = slots.new(), slots.new()
    queue.reserve(2)
    queue.put(quick, PIXELS, 1.0)
    queue.put(slow, PIXELS, 2.0)
    assert queue.cut(now=3.0).batch == [quick, slow]


def test_a_held_batch_says_how_long_to_wait(slots: Slots) -> None:
    queue, waiting = slots.waiting(1, Limits(4, max_queue_delay_s=0.5), now=10.0)
    held = queue.cut(now=10.125)
    assert (held.batch, held.wait_s) == ([], 0.375)
    assert queue.cut(now=10.5).batch == waiting


def test_an_empty_queue_waits_without_a_limit(slots: Slots) -> None:
    queue, _ = slots.waiting(0)
    assert queue.cut(now=0.0).wait_s is None


def test_an_expired_image_leaves_and_is_reported_and_does_not_fill_the_batch(slots: Slots) -> None:
    queue = WaitingQueue(Limits(max_batch_size=1))
    late, fine = slots.new(deadline=5.0), slots.new()
    queue.reserve(2)
    for slot in (late, fine):
        queue.put(slot, PIXELS, 0.0)
    cut = queue.cut(now=5.0)
    assert cut.expired == [late]
    assert cut.batch == [fine]
    assert len(queue) == 0


def test_an_image_that_leaves_frees_its_place_wherever_it_was(slots: Slots) -> None:
    queue, (waiting, running) = slots.waiting(2, Limits(max_batch_size=1, max_queue_size=8))
    reserved = slots.new()
    queue.reserve(1)
    assert len(queue) == 3
    queue.leave(waiting)
    queue.leave(reserved)
    assert queue.cut(now=0.0).batch == [running]
    queue.leave(running)
    assert len(queue) == 0
    assert {waiting.stage, reserved.stage, running.stage} == {Stage.GONE}


def test_leaving_twice_changes_nothing(slots: Slots) -> None:
    queue, (slot, _) = slots.waiting(2)
    queue.leave(slot)
    queue.leave(slot)
    assert len(queue) == 1


def test_reserved_and_waiting_images_hold_a_place_and_running_ones_do_not(slots: Slots) -> None:
    queue, _ = slots.waiting(2, Limits(max_batch_size=2, max_queue_size=3))
    queue.reserve(3)
    assert len(queue) == 5
    queue.cut(now=0.0)
    assert len(queue) == 3


operations = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.floats(0, 100)),
        st.tuples(st.sampled_from(["put", "leave"]), st.integers(0, 30)),
        st.tuples(st.just("cut"), st.floats(0, 100)),
    ),
    max_size=60,
)


@given(operations, st.integers(1, 5), st.sampled_from([0.0, 3.0]))
def test_every_image_is_in_one_place_and_no_image_runs_that_left_or_expired(
    slots: Slots, steps: list[tuple[str, float]], max_batch_size: int, delay_s: float
) -> None:
    queue = WaitingQueue(Limits(max_batch_size, delay_s))
    admitted: list[Slot] = []
    ready: list[Slot] = []
    ran: list[Slot] = []
    now = 0.0
    for name, argument in steps:
        if name == "reserve":
            queue.reserve(1)
            admitted.append(slots.new(deadline=argument))
        elif name == "cut":
            now = max(now, argument)
            cut = queue.cut(now)
            assert len(cut.batch) <= max_batch_size
            assert all(slot.deadline > now and slot.stage is Stage.RUNNING for slot in cut.batch)
            assert all(slot.deadline <= now and slot.stage is Stage.GONE for slot in cut.expired)
            ran += cut.batch
        elif int(argument) < len(admitted):
            slot = admitted[int(argument)]
            if name == "leave":
                queue.leave(slot)
            elif slot.stage is Stage.RESERVED:
                queue.put(slot, PIXELS, now)
                ready.append(slot)
    places = [slot.stage for slot in admitted]
    assert len(queue) == places.count(Stage.RESERVED) + places.count(Stage.WAITING)
    assert ran == [slot for slot in ready if slot in ran], "images run in the order in which they became ready"
