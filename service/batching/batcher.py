"""Groups waiting images for one engine, whose thread cuts a batch the moment it is free.

The contract, clause by clause (tests/service/batching/test_batcher.py):

1. a request ends exactly once: with its answer, an error, or its own cancellation;
2. cancelled and expired images leave before their batch runs;
3. one bad image fails alone: a batch that raises is run again in halves, down to the culprit;
4. the queue is bounded, counts images, and refuses at once;
5. shutdown drains: what is admitted is answered, what comes later is refused.

No timer, no polling: an idle engine thread sleeps on a condition. An engine that takes several batches at a time, such
as one on other machines, has as many threads. What the queue decides is in `service.batching.waiting`, which is pure;
the batcher owns it, with the lock, the clock and the threads around it. A caller holds slots, which are plain data, and
hands them back: `batcher.put(slot, pixels)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from enum import Enum
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from model.engines.engine import Engine, EngineOutput
from service.batching.waiting import Answer, Limits, Slot, Stage, WaitingQueue
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    NotReady,
    QueueFull,
    RequestError,
)

log = logging.getLogger(__name__)

FAILURES_UNTIL_FAILING = 3
"""Batches in a row without a single answer after which the engine counts as failing."""

Verdict = tuple[Slot, Answer | Exception]


class Outcome(Enum):
    """How an admitted image ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


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


class Reservation:
    """The slots of one request, held until the `with` block ends; their images share `timeout_s`."""

    def __init__(self, batcher: Batcher, slots: Sequence[Slot], timeout_s: float) -> None:
        self.slots = slots
        self._batcher = batcher
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Reservation:
        """Starts the clock."""
        loop, timeout_s = asyncio.get_running_loop(), self._timeout_s
        self._timer = loop.call_later(timeout_s, self._end, lambda: _deadline_exceeded(timeout_s))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Frees the places; counts every image once: answered, failed, cancelled (or never run), expired."""
        if self._timer is not None:
            self._timer.cancel()
        self._batcher.leave(self.slots, error)

    def client_left(self) -> None:
        """Ends every image that has no end yet: nobody waits for it."""
        self._end(lambda: ClientGone("the client closed the connection before its answer was ready"))

    async def outcomes(self) -> list[Answer | Exception]:
        """One answer or error per slot, in order, as soon as all have their end."""
        ends: list[Answer | Exception] = []
        for slot in self.slots:
            try:
                ends.append(await slot.answer)
            except Exception as error:
                ends.append(error)
        return ends

    def _end(self, error: Callable[[], RequestError]) -> None:
        for slot in self.slots:
            if not slot.answer.done():
                slot.answer.set_exception(error())


@dataclass(eq=False, slots=True)
class _Run:
    """A batch under way."""

    slots: list[Slot]
    since: float


class Batcher:
    """Admission, queue and engine loop of one engine.

    `check`, `reserve`, `leave`, `refuse_new` and `drained` belong to one event loop, `serve` to the engine's threads;
    the rest may be called from anywhere. `on_batch` hears the size of every batch that ran, on an engine thread.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.perf_counter,  # that of a request's stage times
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.counts = Counts()
        self._queue = WaitingQueue(limits)
        self._changed = threading.Condition()
        self._clock = clock
        self._on_batch = on_batch
        self._runs: list[_Run] = []
        self._lanes = 0
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
        """Seconds that engine threads have spent on batches, the present ones included."""
        with self._changed:
            return self._busy_s + sum(self._clock() - run.since for run in self._runs)

    @property
    def running_s(self) -> float:
        """Age of the oldest batch that runs now, 0 if none does."""
        with self._changed:
            return self._clock() - self._runs[0].since if self._runs else 0.0

    def retry_after_s(self) -> float:
        """When a refused client may find room: the time that the present queue needs at the measured rate."""
        return max(1.0, self.queued * self._image_s / max(1, self._lanes))

    # --- callers: one event loop ---

    def check(self, images: int = 1, *, draining: bool = True) -> None:
        """Raises `NotReady`, `Draining` (if that is to count) or `QueueFull` if so many would be refused now."""
        if self._death is not None:
            raise NotReady(self._death)
        if self._refusing and draining:
            raise Draining
        if self.queued + images > self.limits.max_queue_size:
            self._raise_full(images)

    def reserve(self, images: int, timeout_s: float, *, accepted: bool = False) -> Reservation:
        """Places for all images of one request or for none, held until the reservation's block ends.

        `accepted` is for a caller that `check` let pass before the pictures had arrived: shutdown no longer
        refuses it. Raises what `check` raises. The images count as admitted from now on: enter the block at once.
        """
        self.check(images, draining=not accepted)
        loop, deadline = asyncio.get_running_loop(), self._clock() + timeout_s
        slots = [Slot(deadline, timeout_s, loop.create_future()) for _ in range(images)]
        with self._changed:
            self._queue.reserve(images)
        self.counts.admitted += images
        self._idle.clear()
        return Reservation(self, slots, timeout_s)

    def put(self, slot: Slot, pixels: NDArray[np.uint8]) -> None:
        """Lets uint8 [3, native, native] wait for a batch, unless its caller has left; from any thread."""
        with self._changed:
            if (why := self._death) is None and slot.wanted:
                self._queue.put(slot, pixels, self._clock())
                self._changed.notify()
        if why is not None:
            self.fail(slot, NotReady(why))

    def fail(self, slot: Slot, error: Exception) -> None:
        """Ends an image with an error, and frees its place at once; from any thread."""
        with self._changed:
            self._queue.leave(slot)
        self._deliver([(slot, error)])

    def leave(self, slots: Sequence[Slot], error: BaseException | None) -> None:
        """Frees the places of a request, which `error` ended early, and counts the ends of its images."""
        with self._changed:
            for slot in slots:
                self._queue.leave(slot)
        for slot in slots:
            self.counts.add(_outcome(slot, error))
        if self.counts.ended == self.counts.admitted:
            self._idle.set()

    def refuse_new(self) -> None:
        """From now on `reserve` raises `Draining`; what is admitted goes on."""
        self._refusing = True

    async def drained(self) -> None:
        """Returns when every admitted image has its end."""
        await self._idle.wait()

    def _raise_full(self, images: int) -> None:
        limit, wait_s = self.limits.max_queue_size, self.retry_after_s()
        room = f"fewer than {limit} waiting images" if images == 1 else f"room for {images} of {limit} images"
        raise QueueFull(
            f"expected {room}, found {self.queued} waiting; try again in {wait_s:.0f} s", retry_after_s=wait_s
        )

    # --- the engine's threads ---

    def serve(self, engine: Engine) -> None:
        """Runs batches until `stop` was called and nothing waits any more; blocks its thread.

        Several threads may serve the same engine, if it can run so many batches at a time.
        """
        largest = min(self.limits.max_batch_size, engine.max_batch_size)
        with self._changed:
            self._lanes += 1
            self._queue.limits = Limits(largest, self.limits.max_queue_delay_s, self.limits.max_queue_size)
        while run := self._next_run():
            self._carry_out(engine, run)

    def stop(self) -> None:
        """Lets `serve` return once nothing waits."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def abandon(self, why: str) -> None:
        """The engine is dead: every waiting and running image ends with `NotReady(why)`, all others too."""
        with self._changed:
            self._death = why
            orphans = [*(slot for run in self._runs for slot in run.slots), *self._queue.clear()]
        self._deliver([(slot, NotReady(why)) for slot in orphans])

    def _next_run(self) -> _Run | None:
        """The next batch, as soon as there is one; None after `stop`."""
        with self._changed:
            while True:
                batch, expired, wait_s = self._queue.cut(self._clock(), self._stopping)
                self._deliver([(slot, _deadline_exceeded(slot.timeout_s)) for slot in expired])
                if batch:
                    self._runs.append(_Run(batch, self._clock()))
                    return self._runs[-1]
                if self._stopping:
                    return None
                self._changed.wait(wait_s)

    def _carry_out(self, engine: Engine, run: _Run) -> None:
        answered = self._attempt(engine, run.slots)
        with self._changed:
            taken_s = self._clock() - run.since
            self._failures = 0 if answered else self._failures + 1
            self._image_s += 0.2 * (taken_s / len(run.slots) - self._image_s)  # moving average over about five batches
            self._busy_s += taken_s
            self._runs.remove(run)

    def _attempt(self, engine: Engine, batch: list[Slot]) -> int:
        """The number of answers given by running the batch, or the halves of one that raises."""
        wanted = [slot for slot in batch if slot.stage is Stage.RUNNING]
        if not wanted:
            return 0
        try:
            verdicts = self._verdicts(engine, wanted)
        except RequestError as error:  # refused as a whole by an engine elsewhere: halves would fare no better
            verdicts = [(slot, copy(error)) for slot in wanted]
        except Exception as error:
            if len(wanted) > 1:
                half = len(wanted) // 2
                return self._attempt(engine, wanted[:half]) + self._attempt(engine, wanted[half:])
            log.error("the engine failed on an image", exc_info=error)
            verdicts = [(wanted[0], _engine_failed())]
        self._deliver(verdicts)
        return sum(isinstance(verdict, Answer) for _, verdict in verdicts)

    def _verdicts(self, engine: Engine, batch: list[Slot]) -> list[Verdict]:
        images = [slot.pixels for slot in batch if slot.pixels is not None]
        began = self._clock()
        stacked = np.stack(images)
        started = self._clock()
        copy_s = started - began
        output = engine.run(stacked)
        engine_s = self._clock() - started
        self._on_batch(len(images))
        _check_output(output, len(images))
        sound = np.isfinite(output.logits).all(axis=1)
        if not sound.all():
            log.error("the engine gave logits that are not finite for %d of %d images", (~sound).sum(), len(sound))
        rows = zip(batch, sound, output.logits, output.frequency_scores, output.source_maps, strict=True)
        return [
            (slot, Answer(logits, scores, source, began - slot.waiting_since, copy_s, engine_s, len(batch), began))
            if finite
            else (slot, _engine_failed())
            for slot, finite, logits, scores, source in rows
        ]

    def _deliver(self, verdicts: Sequence[Verdict]) -> None:
        """Wakes the callers, all in one go on their event loop."""
        if not verdicts:
            return
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            verdicts[0][0].answer.get_loop().call_soon_threadsafe(_settle, verdicts)


def _settle(verdicts: Sequence[Verdict]) -> None:
    for slot, verdict in verdicts:
        if slot.answer.done():  # its caller left meanwhile
            continue
        if isinstance(verdict, Answer):
            slot.answer.set_result(verdict)
        else:
            slot.answer.set_exception(verdict)


def _outcome(slot: Slot, block: BaseException | None) -> Outcome:
    """How the image ended, where `block` is what ended its request early."""
    answer = slot.answer
    # asked for even where the block says enough: asyncio logs an exception that nobody has seen
    own = answer.exception() if answer.done() and not answer.cancelled() else asyncio.CancelledError()
    if (error := block or own) is None:
        return Outcome.ANSWERED
    if isinstance(error, DeadlineExceeded):
        return Outcome.EXPIRED
    if isinstance(error, ClientGone | asyncio.CancelledError):
        return Outcome.CANCELLED
    return Outcome.FAILED


def _deadline_exceeded(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"expected an answer within {timeout_s:g} s, found none; the service is busy, try again later"
    )


def _check_output(output: EngineOutput, count: int) -> None:
    lengths = [len(rows) for rows in output]
    if any(length != count for length in lengths):
        raise ValueError(f"expected {count} rows in each output of the engine, found {lengths}")


def _engine_failed() -> EngineFailed:
    return EngineFailed(
        "expected an answer of the model, found a failure on this very picture; try another one, "
        "and if that fails too, give the operator the request id"
    )
