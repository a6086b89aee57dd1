"""Groups waiting images for one engine thread, which cuts a batch the moment it is free.

The contract, clause by clause (tests/service/test_batcher.py):

1. a request ends exactly once: with its answer, an error, or its own cancellation;
2. cancelled and expired images leave before their batch runs;
3. one bad image fails alone: a batch that raises is run again in halves, down to the culprit;
4. the queue is bounded, counts images, and refuses at once;
5. shutdown drains: what is admitted is answered, what comes later is refused.

No timer, no polling: an idle engine thread sleeps on a condition. What the queue decides is in
`service.waiting`; this is the shell with the lock, the thread and the futures.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlineExceeded, Draining, EngineFailed, NotReady, QueueFull, RequestError
from service.waiting import Limits, Stage, Ticket, WaitingQueue

if TYPE_CHECKING:
    from model.engine import Engine, EngineOutput

log = logging.getLogger(__name__)

FAILURES_UNTIL_FAILING = 3
"""Batches in a row without a single answer after which the engine counts as failing."""


class Outcome(Enum):
    """How an admitted image ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Answer(NamedTuple):
    """What the engine found in one image; the arrays are rows of its batch."""

    logits: NDArray[np.float32]
    frequency_score: NDArray[np.float32]
    source_maps: NDArray[np.int64]
    """Owner of every patch after each merging block, [merging blocks, patches]."""
    queue_s: float
    engine_s: float
    batch_size: int

    @property
    def source_map(self) -> NDArray[np.int64]:
        """Owner of every patch at the end."""
        last: NDArray[np.int64] = self.source_maps[-1]
        return last


class Job(NamedTuple):
    """Pixels, and the future that their caller awaits."""

    image: NDArray[np.uint8]
    answer: asyncio.Future[Answer]


@dataclass(slots=True)
class Counts:
    """Admitted images and their ends; `admitted` is the sum of the others plus what is under way."""

    admitted: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def ended(self) -> int:
        """Images that have their end."""
        return self.answered + self.failed + self.cancelled + self.expired

    def add(self, outcome: Outcome) -> None:
        """Counts one end."""
        setattr(self, outcome.value, getattr(self, outcome.value) + 1)


class Slot:
    """The place of one admitted image."""

    def __init__(self, batcher: Batcher, ticket: Ticket[Job]) -> None:
        self._batcher = batcher
        self._ticket = ticket
        self.answered = False

    async def run(self, image: NDArray[np.uint8]) -> Answer:
        """The engine's answer for uint8 [3, native, native].

        Raises `EngineFailed`, `NotReady` (the engine died) or `DeadlineExceeded`.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._batcher.enqueue(self._ticket, Job(image, answer))
        result = await answer
        self.answered = True
        return result


Verdict = tuple[Ticket[Job], Answer | RequestError]


class Batcher:
    """Admission, queue and engine loop of one engine.

    `admit`, `refuse_new` and `drained` belong to one event loop, `serve` to one thread; `stop` and `abandon`
    may be called from anywhere. `on_batch` hears the size of every batch that ran, on the engine thread.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.counts = Counts()
        self._queue: WaitingQueue[Job] = WaitingQueue(limits)
        self._changed = threading.Condition()
        self._clock = clock
        self._on_batch = on_batch
        self._running: list[Ticket[Job]] = []
        self._running_since: float | None = None
        self._busy_s = 0.0
        self._image_s = 0.0
        self._failures = 0
        self._refusing = False
        self._stopping = False
        self._death: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    # --- what others see ---

    @property
    def limits(self) -> Limits:
        """The three limits."""
        return self._queue.limits

    @property
    def queued(self) -> int:
        """Images that are decoded or wait; the running batch is not among them."""
        return len(self._queue)

    @property
    def failing(self) -> bool:
        """Whether the engine has answered nothing for several batches."""
        return self._failures >= FAILURES_UNTIL_FAILING

    @property
    def busy_s(self) -> float:
        """Seconds that the engine thread has spent on batches, the present one included."""
        since = self._running_since
        return self._busy_s + (self._clock() - since if since is not None else 0.0)

    @property
    def running_s(self) -> float:
        """Age of the batch that runs now, 0 if none does."""
        since = self._running_since
        return self._clock() - since if since is not None else 0.0

    def retry_after_s(self) -> float:
        """When a refused client may find room: the time that the present queue needs at the measured rate."""
        return max(1.0, self.queued * self._image_s)

    # --- callers: one event loop ---

    def check(self, *, draining: bool = True) -> None:
        """Raises `NotReady`, `Draining` (if that is to count) or `QueueFull` if an image would be refused now."""
        if self._death is not None:
            raise NotReady(self._death)
        if self._refusing and draining:
            raise Draining("expected a running service, found one that is shutting down; ask another replica")
        if self._queue.full:
            self._raise_full()

    @asynccontextmanager
    async def admit(self, timeout_s: float, *, accepted: bool = False) -> AsyncIterator[Slot]:
        """A place for one image, held until the block ends, which may take `timeout_s`.

        `accepted` is for a caller that `check` let pass before the picture had arrived: shutdown no longer
        refuses it. Raises what `check` raises, and `DeadlineExceeded` when the time is over. The image counts
        as what the block ends with: answered, failed (an error), cancelled (or never run), expired.
        """
        self.check(draining=not accepted)
        ticket = self._reserve(timeout_s)
        outcome = Outcome.FAILED
        slot = Slot(self, ticket)
        try:
            async with asyncio.timeout(timeout_s):
                yield slot
            outcome = Outcome.ANSWERED if slot.answered else Outcome.CANCELLED
        except asyncio.CancelledError:
            outcome = Outcome.CANCELLED
            raise
        except (TimeoutError, DeadlineExceeded):
            outcome = Outcome.EXPIRED
            raise _deadline_exceeded(timeout_s) from None
        finally:
            self._end(ticket, outcome)

    def enqueue(self, ticket: Ticket[Job], job: Job) -> None:
        """Lets an admitted image wait for a batch; raises `NotReady` if the engine has died meanwhile."""
        with self._changed:
            if self._death is not None:
                raise NotReady(self._death)
            self._queue.put(ticket, job, self._clock())
            self._changed.notify()

    def refuse_new(self) -> None:
        """From now on `admit` raises `Draining`; what is admitted goes on."""
        self._refusing = True

    async def drained(self) -> None:
        """Returns when every admitted image has its end."""
        await self._idle.wait()

    def _reserve(self, timeout_s: float) -> Ticket[Job]:
        with self._changed:
            ticket = self._queue.reserve(self._clock() + timeout_s)
        self.counts.admitted += 1
        self._idle.clear()
        return ticket

    def _end(self, ticket: Ticket[Job], outcome: Outcome) -> None:
        with self._changed:
            self._queue.leave(ticket)
        self.counts.add(outcome)
        if self.counts.ended == self.counts.admitted:
            self._idle.set()

    def _raise_full(self) -> None:
        limit, wait_s = self.limits.max_queue_size, self.retry_after_s()
        raise QueueFull(
            f"expected fewer than {limit} waiting images, found {self.queued}; try again in {wait_s:.0f} s",
            retry_after_s=wait_s,
        )

    # --- the engine thread ---

    def serve(self, engine: Engine) -> None:
        """Runs batches until `stop` was called and nothing waits any more; blocks its thread."""
        largest = min(self.limits.max_batch_size, engine.max_batch_size)
        with self._changed:
            self._queue.limits = Limits(largest, self.limits.max_queue_delay_s, self.limits.max_queue_size)
        while batch := self._next_batch():
            self._run(engine, batch)

    def stop(self) -> None:
        """Lets `serve` return once nothing waits."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def abandon(self, why: str) -> None:
        """The engine is dead: every waiting and running image ends with `NotReady(why)`, all others too."""
        with self._changed:
            self._death = why
            orphans = [*self._running, *self._queue.clear()]
        self._deliver([(ticket, NotReady(why)) for ticket in orphans])

    def _next_batch(self) -> list[Ticket[Job]]:
        """The next batch, as soon as there is one; empty after `stop`."""
        with self._changed:
            while True:
                batch, expired, wait_s = self._queue.cut(self._clock(), self._stopping)
                self._deliver([(ticket, DeadlineExceeded("")) for ticket in expired])
                if batch or self._stopping:
                    self._running = batch
                    return batch
                self._changed.wait(wait_s)

    def _run(self, engine: Engine, batch: list[Ticket[Job]]) -> None:
        self._running_since = started = self._clock()
        answered = self._attempt(engine, batch)
        taken_s = self._clock() - started
        self._failures = 0 if answered else self._failures + 1
        self._image_s += 0.2 * (taken_s / len(batch) - self._image_s)  # moving average over about five batches
        self._busy_s += taken_s
        self._running, self._running_since = [], None

    def _attempt(self, engine: Engine, batch: list[Ticket[Job]]) -> int:
        """The number of answers given by running the batch, or the halves of one that raises."""
        wanted = [ticket for ticket in batch if ticket.stage is Stage.RUNNING]
        if not wanted:
            return 0
        try:
            verdicts = self._verdicts(engine, wanted)
        except Exception as error:
            if len(wanted) > 1:
                half = len(wanted) // 2
                return self._attempt(engine, wanted[:half]) + self._attempt(engine, wanted[half:])
            log.error("the engine failed on an image", exc_info=error)
            verdicts = [(wanted[0], _engine_failed())]
        self._deliver(verdicts)
        return sum(isinstance(verdict, Answer) for _, verdict in verdicts)

    def _verdicts(self, engine: Engine, batch: list[Ticket[Job]]) -> list[Verdict]:
        jobs = [ticket.payload for ticket in batch if ticket.payload is not None]
        started = self._clock()
        output = engine.run(np.stack([job.image for job in jobs]))
        engine_s = self._clock() - started
        self._on_batch(len(jobs))
        _check_output(output, len(jobs))
        sound = np.isfinite(output.logits).all(axis=1)
        if not sound.all():
            log.error("the engine gave logits that are not finite for %d of %d images", (~sound).sum(), len(sound))
        rows = zip(batch, sound, output.logits, output.frequency_score, output.source_maps, strict=True)
        return [
            (ticket, Answer(logits, score, source, started - ticket.waiting_since, engine_s, len(batch)))
            if finite
            else (ticket, _engine_failed())
            for ticket, finite, logits, score, source in rows
        ]

    def _deliver(self, verdicts: Sequence[Verdict]) -> None:
        """Wakes the callers, all in one go on their event loop."""
        addressed = [(ticket.payload.answer, verdict) for ticket, verdict in verdicts if ticket.payload is not None]
        if not addressed:
            return
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            addressed[0][0].get_loop().call_soon_threadsafe(_settle, addressed)


def _settle(addressed: list[tuple[asyncio.Future[Answer], Answer | RequestError]]) -> None:
    for future, verdict in addressed:
        if future.done():  # its caller left while the batch ran
            continue
        if isinstance(verdict, RequestError):
            future.set_exception(verdict)
        else:
            future.set_result(verdict)


def _check_output(output: EngineOutput, count: int) -> None:
    lengths = [len(rows) for rows in output]
    if any(length != count for length in lengths):
        raise ValueError(f"expected {count} rows in each output of the engine, found {lengths}")


def _engine_failed() -> EngineFailed:
    return EngineFailed(
        "expected an answer of the model, found a failure on this very picture; try another one, "
        "and if that fails too, give the operator the request id"
    )


def _deadline_exceeded(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"expected an answer within {timeout_s:g} s, found none; the service is busy, try again later"
    )
