"""How fast a request body has to arrive: no silence longer than a time, and no less than a rate over that time.

A whole-body time limit would ask large pictures for fast connections. Here a steady sender is never cut off, unless
memory for bodies runs out: then the slowest gives way to those that are faster, or many slow ones could fill it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from operator import itemgetter
from types import TracebackType
from typing import NamedTuple

from service.errors import SlowBody
from service.settings import Settings

LOOKS = 8
"""Of the timer in one window: how finely the window slides."""

JUDGED_FROM = 2
"""Looks at a body before its rate is compared with others': at least one whole step of the window."""


class Pace(NamedTuple):
    """At least `least_bytes` in every `window_s` seconds."""

    window_s: float
    least_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Pace:
        """What the settings ask for; one byte, where they ask for no rate."""
        window_s = settings.body_timeout_s
        return cls(window_s, max(1, round(window_s * settings.min_body_bytes_per_s)))


class Arrivals:
    """The bodies that arrive now, of which those that fall behind are ended; belongs to one event loop.

    One timer looks at all of them, and only while there are any: a body that is there at once costs no timer.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.open: set[Arrival] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Arrival:
        """A body of the current task, to be entered; raises `SlowBody` inside the block if it falls behind."""
        if self._timer is None:
            self._set_timer()
        return Arrival(self.open)

    def look(self) -> None:
        """Ends the bodies that have brought too little; to be called `LOOKS` times in a window."""
        for arrival in self.open:
            arrival.look(self.pace)

    def slower_than(self, other: Arrival) -> list[Arrival]:
        """The bodies that bring less than `other` does, the slowest first; those that have just begun count as fast."""
        rates = [(arrival.rate(), arrival) for arrival in self.open]
        return [arrival for rate, arrival in sorted(rates, key=itemgetter(0)) if rate < other.rate()]

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.pace.window_s / LOOKS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.look()
        if self.open:
            self._set_timer()


class Arrival:
    """One body on its way; works as `asyncio.timeout` does, with a rate in the place of the clock."""

    __slots__ = ("_behind", "_marks", "_open", "_task", "held", "size")

    def __init__(self, open: set[Arrival]) -> None:
        self.size = 0
        """Bytes that have arrived; whoever reads them keeps it up to date."""
        self.held = 0
        """Bytes of them that count as held in memory; also theirs who read them."""
        self._open = open
        self._marks: deque[int] | None = None  # the sizes at the last looks; most bodies are there before the first
        self._behind: SlowBody | None = None

    def __enter__(self) -> Arrival:
        """Begins to be looked at."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a body needs a task that reads it")
        self._task = task
        self._open.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises `SlowBody` if the body fell behind and nothing else has ended the block."""
        self._open.discard(self)
        if self._behind is not None and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise self._behind from None

    def look(self, pace: Pace) -> None:
        """Ends the task that reads it if the last window brought too little; the first one begins with the body."""
        if self._marks is None:
            self._marks = deque([0], LOOKS)
            return
        received = self.size - self._marks[0]
        if len(self._marks) == LOOKS and received < pace.least_bytes:
            self.end(_slow(pace, received))
        self._marks.append(self.size)

    def rate(self) -> float:
        """Bytes for each look of the last window; infinite while it is too young to be judged."""
        if self._marks is None or len(self._marks) < JUDGED_FROM:
            return math.inf
        return (self.size - self._marks[0]) / len(self._marks)

    def end(self, why: SlowBody) -> None:
        """Ends the task that reads it, unless that was done before."""
        if self._behind is None:
            self._behind = why
            self._task.cancel()


def _slow(pace: Pace, found: int) -> SlowBody:
    return SlowBody(
        f"expected at least {pace.least_bytes:,} bytes of the request body within {pace.window_s:g} s, "
        f"found {found:,}; send a smaller picture or use a faster connection",
        headers={"Connection": "close"},
    )
