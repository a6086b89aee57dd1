"""A circuit breaker: spares a server that does not answer most of the calls. Pure: time arrives from a clock."""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitBreaker:
    """Closed while answers come; after `failures` in a row it lets one attempt pass every `pause_s`."""

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = failures
        self._pause_s = pause_s
        self._clock = clock
        self._in_a_row = 0
        self._next_attempt = 0.0

    def allows(self) -> bool:
        """Whether to call now; while the breaker is open, the caller that gets True makes the only attempt."""
        if self._in_a_row < self._most:
            return True
        now = self._clock()
        if now < self._next_attempt:
            return False
        self._next_attempt = now + self._pause_s  # a cancelled attempt costs one pause, no more
        return True

    def succeeded(self) -> None:
        """Notes an answer."""
        self._in_a_row = 0

    def failed(self) -> None:
        """Notes that none came."""
        self._in_a_row += 1
        self._next_attempt = self._clock() + self._pause_s
