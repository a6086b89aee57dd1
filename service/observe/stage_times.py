"""Where the time of one request went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

STAGES = ("read", "decode", "queue", "copy", "engine", "store", "draw", "encode")
"""Stages in the order in which a picture passes them."""


class Stages:
    """Seconds per stage of one request, in order of their end."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes."""
        started = self._clock()
        try:
            yield
        finally:
            self.add(stage, started, self._clock())

    def add(self, stage: str, began: float, ended: float) -> None:
        """Adds the time between two moments of the clock to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + ended - began

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds per stage, to the microsecond."""
        return {stage: round(1000 * seconds, 3) for stage, seconds in self.seconds.items()}

    def server_timing(self) -> str:
        """The stages as a `Server-Timing` header (W3C), in milliseconds."""
        return ", ".join(f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in self.seconds.items())


class Interval(NamedTuple):
    """A stage, and when it was, on the clock of its `Stages`."""

    name: str
    began: float
    ended: float


class TracedStages(Stages):
    """Stages that also remember when they were, for traces."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(clock)
        self.intervals: list[Interval] = []

    def add(self, stage: str, began: float, ended: float) -> None:
        """Adds the time between two moments of the clock to a stage."""
        super().add(stage, began, ended)
        self.intervals.append(Interval(stage, began, ended))
