"""The breaker, with a clock of its own."""

from __future__ import annotations

from service.store.circuit_breaker import CircuitBreaker


def broken(now: list[float]) -> CircuitBreaker:
    breaker = CircuitBreaker(2, 10.0, lambda: now[0])
    breaker.failed()
    breaker.failed()
    return breaker


def test_failures_that_are_not_in_a_row_stop_nothing() -> None:
    breaker = CircuitBreaker(2, 10.0, lambda: 0.0)
    for _ in range(5):
        breaker.failed()
        assert breaker.allows()
        breaker.succeeded()


def test_after_failures_in_a_row_one_attempt_passes_per_pause() -> None:
    now = [0.0]
    breaker = broken(now)
    assert not breaker.allows()
    now[0] = 9.9
    assert not breaker.allows()
    now[0] = 10.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    now[0] = 20.0
    assert breaker.allows(), "an attempt that ended without a word has cost a pause"


def test_an_attempt_that_fails_costs_another_pause_and_one_that_succeeds_closes_it() -> None:
    now = [0.0]
    breaker = broken(now)
    now[0] = 10.0
    assert breaker.allows()
    now[0] = 12.0
    breaker.failed()
    now[0] = 21.9
    assert not breaker.allows()
    now[0] = 22.0
    assert breaker.allows()
    breaker.succeeded()
    assert [breaker.allows(), breaker.allows()] == [True, True]
