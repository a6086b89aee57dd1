"""The queue as plain arithmetic: no thread, no event loop, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.waiting import Limits, Stage, Ticket, WaitingQueue, batch_size_now

FOREVER = 1e9


class Named(Ticket):
    """A ticket that a test can tell from the others."""

    def __init__(self, name: str, deadline: float = FOREVER) -> None:
        super().__init__(deadline)
        self.name = name


Queue = WaitingQueue[Named]


def queue_of(*names: str, limits: Limits | None = None, now: float = 0.0) -> tuple[Queue, list[Named]]:
    queue = Queue(limits or Limits(max_batch_size=4, max_queue_size=8))
    tickets = [Named(name) for name in names]
    queue.reserve(len(tickets))
    for ticket in tickets:
        queue.put(ticket, now)
    return queue, tickets


def names(tickets: list[Named]) -> list[str]:
    return [ticket.name for ticket in tickets]


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


def test_a_batch_takes_the_oldest_first_and_leaves_the_rest() -> None:
    queue, _ = queue_of("a", "b", "c", "d", "e")
    assert names(queue.cut(now=1.0).batch) == ["a", "b", "c", "d"]
    assert names(queue.cut(now=1.0).batch) == ["e"]
    assert queue.cut(now=1.0).batch == []


def test_oldest_counts_from_when_the_pixels_were_ready_not_from_admission() -> None:
    queue = Queue(Limits())
    slow, quick = Named("slow"), Named("quick")
    queue.reserve(2)
    queue.put(quick, 1.0)
    queue.put(slow, 2.0)
    assert names(queue.cut(now=3.0).batch) == ["quick", "slow"]


def test_a_held_batch_says_how_long_to_wait() -> None:
    queue, _ = queue_of("a", limits=Limits(4, max_queue_delay_s=0.5), now=10.0)
    held = queue.cut(now=10.125)
    assert (held.batch, held.wait_s) == ([], 0.375)
    assert names(queue.cut(now=10.5).batch) == ["a"]


def test_an_empty_queue_waits_without_a_limit() -> None:
    queue, _ = queue_of()
    assert queue.cut(now=0.0).wait_s is None


def test_an_expired_image_leaves_and_is_reported_and_does_not_fill_the_batch() -> None:
    queue = Queue(Limits(max_batch_size=1))
    queue.reserve(2)
    for name, deadline in (("late", 5.0), ("fine", FOREVER)):
        queue.put(Named(name, deadline), 0.0)
    cut = queue.cut(now=5.0)
    assert names(cut.expired) == ["late"]
    assert names(cut.batch) == ["fine"]
    assert len(queue) == 0


def test_an_image_that_leaves_frees_its_place_wherever_it_was() -> None:
    queue, (waiting, running) = queue_of("a", "b", limits=Limits(max_batch_size=1, max_queue_size=8))
    reserved = Named("c")
    queue.reserve(1)
    assert len(queue) == 3
    queue.leave(waiting)
    queue.leave(reserved)
    assert names(queue.cut(now=0.0).batch) == ["b"]
    queue.leave(running)
    assert len(queue) == 0
    assert {waiting.stage, reserved.stage, running.stage} == {Stage.GONE}


def test_leaving_twice_changes_nothing() -> None:
    queue, (ticket, _) = queue_of("a", "b")
    queue.leave(ticket)
    queue.leave(ticket)
    assert len(queue) == 1


def test_reserved_and_waiting_images_hold_a_place_and_running_ones_do_not() -> None:
    queue, _ = queue_of("a", "b", limits=Limits(max_batch_size=2, max_queue_size=3))
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
    steps: list[tuple[str, float]], max_batch_size: int, delay_s: float
) -> None:
    queue = Queue(Limits(max_batch_size, delay_s))
    tickets: list[Named] = []
    ready: list[Named] = []
    ran: list[Named] = []
    now = 0.0
    for name, argument in steps:
        if name == "reserve":
            queue.reserve(1)
            tickets.append(Named("", deadline=argument))
        elif name == "cut":
            now = max(now, argument)
            cut = queue.cut(now)
            assert len(cut.batch) <= max_batch_size
            assert all(ticket.deadline > now and ticket.stage is Stage.RUNNING for ticket in cut.batch)
            assert all(ticket.deadline <= now and ticket.stage is Stage.GONE for ticket in cut.expired)
            ran += cut.batch
        elif int(argument) < len(tickets):
            ticket = tickets[int(argument)]
            if name == "leave":
                queue.leave(ticket)
            elif ticket.stage is Stage.RESERVED:
                queue.put(ticket, now)
                ready.append(ticket)
    places = [ticket.stage for ticket in tickets]
    assert len(queue) == places.count(Stage.RESERVED) + places.count(Stage.WAITING)
    assert ran == [ticket for ticket in ready if ticket in ran], "images run in the order in which they became ready"
