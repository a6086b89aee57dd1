"""A small pool of worker threads that the event loop hands its work to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class WorkerPool:
    """Threads that decode, draw and encode; threads suffice, for Pillow releases the interpreter lock."""

    def __init__(self, threads: int) -> None:
        self.pending = 0
        """Jobs of `run` that run or wait for a thread."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="freqmerge-worker")

    def submit(self, job: Callable[[], None]) -> None:
        """Runs a job that reports its result, and every error, by itself."""
        self._executor.submit(job)

    async def run(self, job: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """What the job returns or raises. Cancelled while it waits for a thread, the job never runs."""
        future = self._executor.submit(job, *args, **kwargs)
        self.pending += 1
        try:
            return await asyncio.wrap_future(future)
        finally:
            self.pending -= 1

    def close(self) -> None:
        """Ends the threads; waiting jobs are dropped, running ones finish unheard."""
        self._executor.shutdown(wait=False, cancel_futures=True)
