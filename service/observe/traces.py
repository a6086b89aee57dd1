"""What a trace tells of a request, and who tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.observe.stage_times import Interval


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One request, as its span tells it; times are those of `time.perf_counter`."""

    request_id: str
    method: str
    path: str
    route: str | None
    """The template of the route, None if no route took the request."""
    scheme: str
    http_version: str
    status: int
    refusal: str | None
    began: float
    ended: float
    stages: Sequence[Interval]
    parents: Sequence[str]
    """The values of its `traceparent` headers."""
    states: Sequence[str]
    """The values of its `tracestate` headers."""


class Traces(Protocol):
    """Where spans go."""

    def open(self) -> None:
        """Lets spans leave from now on."""

    async def close(self) -> None:
        """Sends what is left, as long as a shutdown can wait for it."""

    def record(self, request: AnsweredRequest) -> str:
        """The id of the trace that the request belongs to; its spans leave later, from another thread."""
