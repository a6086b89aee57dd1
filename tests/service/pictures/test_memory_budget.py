"""Bytes in work at once: bounded, first come first served, and never a deadlock."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.errors import ClientGone
from service.pictures.memory_budget import ByteBudget
from tests.service.conftest import DEADLINE_S


class Job:
    """A job on a thread of its own that holds its bytes until it is let go."""

    def __init__(self, budget: ByteBudget, size: int) -> None:
        self.runs = threading.Event()
        self._go = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(budget, size))
        queue = budget.waiting
        self._thread.start()
        while not self.runs.is_set() and budget.waiting == queue:
            self.runs.wait(0.001)

    def _work(self, budget: ByteBudget, size: int) -> None:
        with budget.hold(size):
            self.runs.set()
            assert self._go.wait(DEADLINE_S)

    def finish(self) -> None:
        self._go.set()
        self._thread.join(DEADLINE_S)


def test_jobs_run_together_while_their_bytes_fit_and_wait_in_turn_when_they_do_not() -> None:
    budget = ByteBudget(10)
    first, second = Job(budget, 6), Job(budget, 4)
    assert (first.runs.is_set(), second.runs.is_set(), budget.held) == (True, True, 10)
    large, small = Job(budget, 7), Job(budget, 1)
    second.finish()
    assert not small.runs.is_set(), "a small job does not overtake a large one, which would never run"
    assert budget.waiting == 2
    first.finish()
    assert large.runs.wait(DEADLINE_S)
    assert small.runs.wait(DEADLINE_S)
    assert budget.held == 8
    large.finish()
    small.finish()
    assert (budget.held, budget.waiting) == (0, 0)


def test_how_many_jobs_wait_and_for_how_long_is_told() -> None:
    waits: list[float] = []
    budget = ByteBudget(10, on_wait=waits.append)
    holder = Job(budget, 10)
    assert (budget.waiting, budget.waited_s, waits) == (0, 0.0, [0.0])
    began = time.monotonic()
    small, large = Job(budget, 1), Job(budget, 9)
    assert budget.waiting == 2
    first_s = budget.waited_s
    assert 0 < first_s <= time.monotonic() - began
    assert budget.waited_s > first_s
    holder.finish()
    assert small.runs.wait(DEADLINE_S)
    assert large.runs.wait(DEADLINE_S)
    assert (budget.waiting, budget.waited_s) == (0, 0.0)
    assert len(waits) == 3
    assert first_s < waits[1], "the first in line is the first to go"
    assert max(waits) <= time.monotonic() - began
    small.finish()
    large.finish()


def test_a_job_larger_than_the_budget_runs_alone() -> None:
    budget = ByteBudget(10)
    giant = Job(budget, 1000)
    other = Job(budget, 1)
    assert giant.runs.is_set()
    assert not other.runs.is_set()
    giant.finish()
    assert other.runs.wait(DEADLINE_S)
    other.finish()


def test_a_job_that_raises_gives_its_bytes_back() -> None:
    budget = ByteBudget(10)

    def fail() -> None:
        with budget.hold(10):
            raise ZeroDivisionError

    with ThreadPoolExecutor(2) as pool:
        errors = [future.exception(DEADLINE_S) for future in [pool.submit(fail) for _ in range(20)]]
    assert {type(error) for error in errors} == {ZeroDivisionError}
    assert budget.held == 0


def test_nobody_waits_behind_a_patient_job_and_it_runs_when_there_is_room() -> None:
    budget = ByteBudget(100)
    began, done = threading.Event(), threading.Event()

    def patient() -> None:
        began.set()
        with budget.hold_patiently(1000):
            assert budget.held == 75
        done.set()

    with budget.hold(60):
        thread = threading.Thread(target=patient)
        thread.start()
        assert began.wait(DEADLINE_S)
        while not budget.waiting:
            began.wait(0)
        with budget.hold(40):  # at once, though the other came first
            assert not done.is_set()
            assert budget.waited_s > 0
    assert done.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert budget.held == 0


@pytest.mark.parametrize("take", [ByteBudget.hold, ByteBudget.hold_patiently])
def test_a_job_that_nobody_wants_any_more_leaves_the_line_and_lets_the_next_one_in(take: Any) -> None:
    waits: list[float] = []
    budget = ByteBudget(10, on_wait=waits.append)
    wanted, left = threading.Event(), threading.Event()
    wanted.set()

    def given_up() -> None:
        with pytest.raises(ClientGone), take(budget, 7, wanted.is_set):
            raise AssertionError("nobody wants it")
        left.set()

    holder = Job(budget, 6)
    thread = threading.Thread(target=given_up)
    thread.start()
    while not budget.waiting:
        left.wait(0.001)
    wanted.clear()
    assert left.wait(DEADLINE_S), "though no memory was freed"
    small = Job(budget, 4)
    assert small.runs.is_set(), "nobody is in line before it"
    assert (budget.held, budget.waiting, len(waits)) == (10, 0, 3)
    holder.finish()
    small.finish()
    thread.join(DEADLINE_S)


def test_a_job_that_was_given_up_while_it_waited_does_not_begin_when_memory_is_free() -> None:
    budget = ByteBudget(10)
    wanted = threading.Event()
    wanted.set()

    def given_up() -> None:
        with budget.hold(7, wanted.is_set):
            pass

    with ThreadPoolExecutor(1) as pool:
        with budget.hold(6):
            future = pool.submit(given_up)
            while not budget.waiting:
                time.sleep(0.001)
            wanted.clear()
        assert isinstance(future.exception(DEADLINE_S), ClientGone)
    assert budget.held == 0
