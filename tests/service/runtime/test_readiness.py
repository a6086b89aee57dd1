"""Readiness as a function of facts: which obstacle is named, and which one first."""

from __future__ import annotations

import pytest

from service.errors import Draining, NotReady, RequestError
from service.runtime.readiness import Facts, obstacle

READY = Facts(dead=False, leaving=False, loaded=True, failing=False, running_s=0.0, stall_after_s=30.0)


def test_a_warm_engine_without_trouble_is_no_obstacle() -> None:
    assert obstacle(READY) is None


@pytest.mark.parametrize(
    ("facts", "kind", "words"),
    [
        (READY._replace(dead=True), NotReady, "has died"),
        (READY._replace(leaving=True), Draining, "shutting down"),
        (READY._replace(loaded=False), NotReady, "still loads"),
        (READY._replace(failing=True), NotReady, "all failed"),
        (READY._replace(running_s=31.4), NotReady, "one batch running for 31 s"),
    ],
)
def test_every_obstacle_is_named(facts: Facts, kind: type[RequestError], words: str) -> None:
    found = obstacle(facts)
    assert type(found) is kind
    assert words in found.detail


def test_a_batch_counts_as_stalled_only_beyond_the_limit() -> None:
    assert obstacle(READY._replace(running_s=30.0)) is None


def test_death_is_named_before_the_shutdown_and_the_shutdown_before_what_the_engine_does() -> None:
    troubled = Facts(dead=True, leaving=True, loaded=False, failing=True, running_s=99.0, stall_after_s=30.0)
    assert "died" in str(obstacle(troubled))
    assert isinstance(obstacle(troubled._replace(dead=False)), Draining)


def test_an_obstacle_says_when_to_come_back() -> None:
    found = obstacle(READY._replace(loaded=False))
    assert found is not None
    assert int(found.headers["Retry-After"]) >= 1
