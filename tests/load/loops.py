"""Load on one server over raw connections: closed loop (so many clients, one request each at a time) or open loop.

The open loop sends at constant intervals whatever the server does, and a latency counts from the moment at which its
request was due: a server that stalls cannot slow its own test down (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.load.connection import Connection
from tests.load.figures import Sample
from tests.load.raw_http import Answer

GRACE_S = 5.0
"""How long answers are awaited after the last request was sent; what has none then counts as status 0."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What load to make. Exactly one of `concurrency` and `rate` is set."""

    host: str
    port: int
    requests: tuple[bytes, ...] = field(repr=False)
    """Sent in turn, round and round."""
    seconds: float
    warm_s: float = 0.0
    """Load before the measurement, of which nothing is kept."""
    concurrency: int = 0
    rate: float = 0.0
    """Requests per second."""
    connections: int = 256
    """Most connections of an open loop; what is due while all are busy waits, and its clock runs."""


class Load(NamedTuple):
    """What the clients of a load saw."""

    samples: list[Sample]
    answered: int
    """Answers of any status, warm-up included: what the server has worked for."""


def due_times(rate: float, seconds: float) -> Iterator[float]:
    """The seconds since the start at which an open loop sends: constant intervals, from 0 on."""
    return (number / rate for number in range(round(rate * seconds)))


async def closed_loop(plan: Plan, clock: Callable[[], float] = time.perf_counter) -> Load:
    """What `plan.concurrency` clients saw, each of which sends its next request when it has its answer."""
    requests = itertools.cycle(plan.requests)
    pool = _Pool(plan)
    started = clock() + plan.warm_s
    finish = started + plan.seconds

    def done(connection: Connection, answer: Answer) -> None:
        now = clock()
        pool.answered += answer.status > 0
        if now >= finish or pool.closed:  # whatever is under way at the end counts for nothing
            return
        if started <= now:
            pool.samples.append(Sample(now - started, now - connection.since, answer.status))
        pool.use(connection, lambda free: free.send(next(requests), clock()))

    await pool.open(plan.concurrency, done)
    for connection in list(pool.connections):
        connection.send(next(requests), clock())
    await asyncio.sleep(finish - clock())
    pool.close()
    return Load(pool.samples, pool.answered)


async def open_loop(plan: Plan, clock: Callable[[], float] = time.perf_counter) -> Load:
    """What came of requests sent at `plan.rate`; latencies from the moment at which each was due."""
    return await _OpenLoop(plan, clock).run()


class _OpenLoop:
    def __init__(self, plan: Plan, clock: Callable[[], float]) -> None:
        self._plan = plan
        self._clock = clock
        self._requests = itertools.cycle(plan.requests)
        self._pool = _Pool(plan)
        self._free: list[Connection] = []
        self._due: deque[float] = deque()
        """When those requests were due that wait for a connection."""
        self._outstanding = 0
        self._ended = asyncio.Event()
        self._started = 0.0

    async def run(self) -> Load:
        plan, pool, clock = self._plan, self._pool, self._clock
        await pool.open(min(plan.connections, max(1, round(plan.rate * (plan.seconds + plan.warm_s)))), self._done)
        self._free.extend(pool.connections)
        first = clock()
        self._started = first + plan.warm_s
        for due_s in due_times(plan.rate, plan.warm_s + plan.seconds):
            await asyncio.sleep(max(0.0, first + due_s - clock()))
            self._send(first + due_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._ended.wait()
        for due in self._due:
            self._note(due, 0)
        pool.close()
        await asyncio.sleep(0.05)  # what is still under way ends, with status 0
        return Load(pool.samples, pool.answered)

    def _send(self, due: float) -> None:
        self._outstanding += 1
        self._ended.clear()
        self._due.append(due)
        if self._free:
            self._give(self._free.pop())

    def _give(self, connection: Connection) -> None:
        if self._due:
            connection.send(next(self._requests), self._due.popleft())
        else:
            self._free.append(connection)

    def _done(self, connection: Connection, answer: Answer) -> None:
        self._outstanding -= 1
        if self._outstanding == 0:
            self._ended.set()
        self._pool.answered += answer.status > 0
        self._note(connection.since, answer.status)
        if not self._pool.closed:
            self._pool.use(connection, self._give)

    def _note(self, due: float, status: int) -> None:
        if due >= self._started:
            now = self._clock()
            self._pool.samples.append(Sample(now - self._started, now - due, status))


class _Pool:
    """The connections of one load; a broken one is replaced."""

    def __init__(self, plan: Plan) -> None:
        self.connections: set[Connection] = set()
        self.samples: list[Sample] = []
        self.answered = 0
        self._plan = plan
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: Callable[[Connection, Answer], None] | None = None
        self.closed = False

    async def open(self, count: int, done: Callable[[Connection, Answer], None]) -> None:
        """Opens so many connections, all of which tell `done`."""
        self._done = done
        for _ in range(count):
            await self._connect()

    def use(self, connection: Connection, what: Callable[[Connection], None]) -> None:
        """Calls `what` with the connection, or with a new one if it has ended."""
        if connection.usable:
            what(connection)
        else:
            self.connections.discard(connection)
            task = asyncio.create_task(self._replace(what))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Ends all connections."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        for connection in self.connections:
            connection.close()

    async def _replace(self, what: Callable[[Connection], None]) -> None:
        while True:
            try:
                what(await self._connect())
            except OSError:
                await asyncio.sleep(0.05)  # the server does not listen: try again, as clients do
            else:
                return

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        done = self._done
        if done is None:
            raise RuntimeError("expected an open pool, found one that was not opened")
        _, connection = await loop.create_connection(lambda: Connection(done), self._plan.host, self._plan.port)
        self.connections.add(connection)
        return connection
