"""What a request holds of the batcher: one slot per image, each of which gets exactly one end.

A slot is filled with pixels or failed from any thread; its `answer` is awaited on the event loop. A
`Reservation` is all slots of one request with the time that they share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.batching.waiting import Stage, Ticket
from service.errors import ClientGone, DeadlineExceeded, RequestError


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
    copy_s: float
    engine_s: float
    batch_size: int

    @property
    def source_map(self) -> NDArray[np.int64]:
        """Owner of every patch at the end."""
        last: NDArray[np.int64] = self.source_maps[-1]
        return last


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


class Host(Protocol):
    """What slots need of their batcher."""

    def put(self, slot: Slot, image: NDArray[np.uint8]) -> None:
        """Lets an admitted image wait for a batch, unless nobody wants it any more."""
        ...

    def fail(self, slot: Slot, error: Exception) -> None:
        """Ends an image with an error."""
        ...

    def leave(self, slots: Sequence[Slot], outcomes: Sequence[Outcome]) -> None:
        """Frees the places of a request and counts the ends of its images."""
        ...


class Slot(Ticket):
    """The place of one admitted image."""

    __slots__ = ("_host", "answer", "image", "timeout_s")

    def __init__(self, host: Host, deadline: float, answer: asyncio.Future[Answer], timeout_s: float) -> None:
        super().__init__(deadline)
        self.answer = answer
        """The engine's answer; ends with `EngineFailed`, `NotReady` (the engine died), `DeadlineExceeded`,
        `ClientGone` or what the slot was failed with."""
        self.image: NDArray[np.uint8] | None = None
        self.timeout_s = timeout_s
        self._host = host

    @property
    def wanted(self) -> bool:
        """Whether pixels are still expected; from any thread."""
        return self.stage is Stage.RESERVED and not self.answer.done()

    def put(self, image: NDArray[np.uint8]) -> None:
        """Lets uint8 [3, native, native] wait for a batch; from any thread. In vain if the caller has left."""
        self._host.put(self, image)

    def fail(self, error: Exception) -> None:
        """Ends the image before it reaches the engine; from any thread."""
        self._host.fail(self, error)

    async def run(self, image: NDArray[np.uint8]) -> Answer:
        """The engine's answer for uint8 [3, native, native]."""
        self.put(image)
        return await self.answer

    def end(self, error: RequestError) -> None:
        """Ends the image on the event loop, unless it has its end."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def outcome(self, block: BaseException | None) -> Outcome:
        """How the image ended, where `block` is what ended its request early."""
        answer = self.answer
        own = answer.exception() if answer.done() and not answer.cancelled() else None  # marks it as seen, too
        if block is not None:
            return _outcome(block)
        if own is not None:
            return _outcome(own)
        return Outcome.ANSWERED if answer.done() and not answer.cancelled() else Outcome.CANCELLED


class Reservation:
    """The slots of one request, held until the `with` block ends; their images share `timeout_s`."""

    def __init__(self, host: Host, slots: Sequence[Slot], timeout_s: float) -> None:
        self.slots = slots
        self._host = host
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Reservation:
        """Starts the clock."""
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Frees the places; counts every image once: answered, failed, cancelled (or never run), expired."""
        if self._timer is not None:
            self._timer.cancel()
        self._host.leave(self.slots, [slot.outcome(error) for slot in self.slots])

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

    def _expire(self) -> None:
        self._end(lambda: deadline_exceeded(self._timeout_s))

    def _end(self, error: Callable[[], RequestError]) -> None:
        for slot in self.slots:
            slot.end(error())


def deadline_exceeded(timeout_s: float) -> DeadlineExceeded:
    """The error of an image whose time is over."""
    return DeadlineExceeded(
        f"expected an answer within {timeout_s:g} s, found none; the service is busy, try again later"
    )


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, DeadlineExceeded):
        return Outcome.EXPIRED
    if isinstance(error, ClientGone | asyncio.CancelledError):
        return Outcome.CANCELLED
    return Outcome.FAILED
