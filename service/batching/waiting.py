"""The queue of admitted images, without threads, event loop or clock: time arrives as a number.

An image is admitted first (it holds a place while it is decoded), then waits with its pixels, and leaves
either into a batch, oldest first, or on its own when its caller has gone or its time is over.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, TypeVar


class Stage(Enum):
    """Where an admitted image is."""

    RESERVED = "holds a place, not decoded yet"
    WAITING = "ready to run"
    RUNNING = "in a batch"
    GONE = "its caller has its end, or does not want it any more"


@dataclass(eq=False, slots=True)
class Ticket:
    """One admitted image, compared by identity; whoever queues images adds to it what they need."""

    deadline: float
    stage: Stage = Stage.RESERVED
    waiting_since: float = 0.0


AnyTicket = TypeVar("AnyTicket", bound=Ticket)


@dataclass(frozen=True, slots=True)
class Limits:
    """The three limits of the batcher; sizes count images."""

    max_batch_size: int = 32
    max_queue_delay_s: float = 0.0
    max_queue_size: int = 256


class Cut(NamedTuple, Generic[AnyTicket]):
    """What leaves the queue now; if nothing does, `wait_s` is how long to wait (None: for a change)."""

    batch: list[AnyTicket]
    expired: list[AnyTicket]
    wait_s: float | None = None


def batch_size_now(waiting: int, oldest_age_s: float, limits: Limits, closing: bool) -> int:
    """How many of the oldest images a free engine takes at once; 0 if it is to hold on for more.

    Without a delay whatever waits is taken. With one, a batch that is not full is held until the oldest
    image has waited that long, or the queue closes.
    """
    full = waiting >= limits.max_batch_size
    if full or closing or oldest_age_s >= limits.max_queue_delay_s:
        return min(waiting, limits.max_batch_size)
    return 0


class WaitingQueue(Generic[AnyTicket]):
    """Admitted images in the order in which they became ready; not thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._reserved = 0
        self._waiting: OrderedDict[AnyTicket, None] = OrderedDict()

    def __len__(self) -> int:
        """Images that hold a place: being decoded or waiting, not those in a batch."""
        return self._reserved + len(self._waiting)

    def reserve(self, images: int) -> None:
        """Holds so many places; the caller has compared the queue's length with its limit before."""
        self._reserved += images

    def put(self, ticket: AnyTicket, now: float) -> None:
        """Lets a reserved image wait for a batch."""
        self._reserved -= 1
        ticket.stage, ticket.waiting_since = Stage.WAITING, now
        self._waiting[ticket] = None

    def leave(self, ticket: AnyTicket) -> None:
        """Takes an image out, wherever it is; one that runs already is only marked."""
        if ticket.stage is Stage.RESERVED:
            self._reserved -= 1
        elif ticket.stage is Stage.WAITING:
            del self._waiting[ticket]
        ticket.stage = Stage.GONE

    def cut(self, now: float, closing: bool = False) -> Cut[AnyTicket]:
        """The expired images, and the batch that a free engine runs now."""
        expired = [ticket for ticket in self._waiting if ticket.deadline <= now]
        for ticket in expired:
            self.leave(ticket)
        if not self._waiting:
            return Cut([], expired)
        age_s = now - next(iter(self._waiting)).waiting_since
        size = batch_size_now(len(self._waiting), age_s, self.limits, closing)
        if size == 0:
            return Cut([], expired, self.limits.max_queue_delay_s - age_s)
        return Cut([self._pop() for _ in range(size)], expired)

    def clear(self) -> list[AnyTicket]:
        """All waiting images, taken out."""
        tickets = list(self._waiting)
        for ticket in tickets:
            self.leave(ticket)
        return tickets

    def _pop(self) -> AnyTicket:
        ticket, _ = self._waiting.popitem(last=False)
        ticket.stage = Stage.RUNNING
        return ticket
