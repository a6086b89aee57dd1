"""A bound on the memory of work that runs at the same time on several threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import ClientGone

PATIENT_SHARE = 0.75
"""Most of a budget that jobs which take long may hold of it, each."""

LOOK_S = 0.05
"""Between two looks at whether a job that waits is still wanted."""


def always() -> bool:
    """Whether a job is wanted that nobody can give up."""
    return True


class ByteBudget:
    """Bytes that jobs hold while they run; a job for which too few are left waits its turn.

    `on_wait` hears how long each job waited, mostly 0, on that job's thread. A job that waits asks its `wanted` now and
    then, and raises `ClientGone` without having held anything once nobody wants it any more.
    """

    def __init__(self, limit: int, on_wait: Callable[[float], None] = lambda seconds: None) -> None:
        self.limit = limit
        self.held = 0
        """Bytes held now; at most the limit."""
        self._line: deque[object] = deque()
        self._waits: dict[object, float] = {}
        """When each job that waits began to; the first to wait first."""
        self._on_wait = on_wait
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """Jobs that wait for their bytes."""
        return len(self._waits)

    @property
    def waited_s(self) -> float:
        """How long a job has waited for its bytes, the longest of those that wait; 0 if none waits."""
        began = next(iter(list(self._waits.values())), None)
        return 0.0 if began is None else time.monotonic() - began

    @contextmanager
    def hold(self, size: int, wanted: Callable[[], bool] = always) -> Iterator[None]:
        """Blocks this thread until so many bytes are free, and holds them for the block; raises `ClientGone`.

        A job that needs more than the limit counts as the limit: it runs alone.
        """
        size = min(size, self.limit)
        self._take(size, wanted)
        try:
            yield
        finally:
            with self._changed:
                self.held -= size
                self._changed.notify_all()

    @contextmanager
    def hold_patiently(self, size: int, wanted: Callable[[], bool] = always) -> Iterator[None]:
        """As `hold`, but nobody waits behind this job: it waits for an empty line, and leaves a share for others.

        For jobs that take long, so that short ones keep their pace: a job counts as `PATIENT_SHARE` of it at most.
        """
        size = min(size, int(self.limit * PATIENT_SHARE))
        with self._changed:
            self._wait_until(lambda: not self._line and self.held + size <= self.limit, wanted)
            self.held += size
        try:
            yield
        finally:
            with self._changed:
                self.held -= size
                self._changed.notify_all()

    def _take(self, size: int, wanted: Callable[[], bool]) -> None:
        turn = object()
        with self._changed:
            self._line.append(turn)
            try:
                self._wait_until(lambda: self._line[0] is turn and self.held + size <= self.limit, wanted)
                self.held += size
            finally:
                self._line.remove(turn)
                self._changed.notify_all()

    def _wait_until(self, free: Callable[[], bool], wanted: Callable[[], bool]) -> None:
        """Returns when the condition holds, and tells how long that took; the lock is held."""
        if free():
            self._on_wait(0.0)
            return
        wait = object()
        began = self._waits[wait] = time.monotonic()
        try:
            while not free():
                self._changed.wait(LOOK_S)
                if not wanted():
                    raise ClientGone("nobody waited for the picture any more")
        finally:
            del self._waits[wait]
            self._on_wait(time.monotonic() - began)
