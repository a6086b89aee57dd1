"""A small pool of worker threads that the event loop hands its work to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class WorkerPool:
    """Threads that decode, draw and encode; threads suffice, for Pillow releases the interpreter lock."""

    def __init__(self, threads: int, name: str = "freqmerge-worker") -> None:
        self.pending = 0
        """Jobs of `run` that run or wait for a thread."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting: dict[object, float] = {}
        """When each job that waits for a thread came; the oldest first."""

    @property
    def waited_s(self) -> float:
        """How long the job at the head of the line has waited for a thread; 0 if none waits."""
        came = next(iter(list(self._waiting.values())), None)
        return 0.0 if came is None else time.monotonic() - came

    def submit(self, job: Callable[[], None]) -> None:
        """Runs a job that reports its result, and every error, by itself."""
        turn = object()
        self._waiting[turn] = time.monotonic()
        self._executor.submit(self._started, turn, job)

    async def run(self, job: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """What the job returns or raises. Cancelled while it waits for a thread, the job never runs."""
        turn = object()
        self._waiting[turn] = time.monotonic()
        self.pending += 1
        try:
            return await asyncio.wrap_future(self._executor.submit(self._started, turn, partial(job, *args, **kwargs)))
        finally:
            self.pending -= 1
            self._waiting.pop(turn, None)

    def _started(self, turn: object, job: Callable[[], Result]) -> Result:
        self._waiting.pop(turn, None)
        return job()

    def close(self) -> None:
        """Ends the threads; waiting jobs are dropped, running ones finish unheard."""
        self._executor.shutdown(wait=False, cancel_futures=True)
