"""The queue of admitted images, without threads, event loop or clock: time arrives as a number.

An image is admitted first (its slot holds a place while it is decoded), then waits with its pixels, and leaves
either into a batch, oldest first, or on its own when its caller has gone or its time is over.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.config import SCORE_NAMES, ScoreName


class Answer(NamedTuple):
    """The engine's output for one image; the arrays are rows of its batch."""

    logits: NDArray[np.float32]
    frequency_scores: NDArray[np.float32]
    """The scores of `model.config.SCORE_NAMES`, in order, [scores, patches]."""
    source_maps: NDArray[np.int64]
    """Owner of every patch after each merging block, [merging blocks, patches]."""
    queue_s: float
    copy_s: float
    engine_s: float
    batch_size: int
    began: float
    """When its batch was put together, on the batcher's clock: between waiting and copying."""

    def score(self, name: ScoreName) -> NDArray[np.float32]:
        """One of the scores [patches], 0..1."""
        chosen: NDArray[np.float32] = self.frequency_scores[SCORE_NAMES.index(name)]
        return chosen

    @property
    def source_map(self) -> NDArray[np.int64]:
        """Owner of every patch at the end."""
        last: NDArray[np.int64] = self.source_maps[-1]
        return last


class Stage(Enum):
    """Where an admitted image is."""

    RESERVED = "holds a place, not decoded yet"
    WAITING = "ready to run"
    RUNNING = "in a batch"
    GONE = "its caller has its end, or does not want it any more"


@dataclass(eq=False, slots=True)
class Slot:
    """The place of one admitted image: plain data that its batcher changes, compared by identity."""

    deadline: float
    timeout_s: float
    answer: asyncio.Future[Answer]
    """The engine's answer; ends with `EngineFailed`, `NotReady` (the engine died), `DeadlineExceeded`,
    `ClientGone` or what the slot was failed with. The queue does not touch it."""
    pixels: NDArray[np.uint8] | None = None
    """uint8 [3, native, native], once it is decoded."""
    stage: Stage = Stage.RESERVED
    waiting_since: float = 0.0

    @property
    def wanted(self) -> bool:
        """Whether pixels are still expected; from any thread."""
        return self.stage is Stage.RESERVED and not self.answer.done()


@dataclass(frozen=True, slots=True)
class Limits:
    """The three limits of the batcher; sizes count images."""

    max_batch_size: int = 32
    max_queue_delay_s: float = 0.0
    max_queue_size: int = 256


class Cut(NamedTuple):
    """What leaves the queue now; if nothing does, `wait_s` is how long to wait (None: for a change)."""

    batch: list[Slot]
    expired: list[Slot]
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


class WaitingQueue:
    """Admitted images in the order in which they became ready; not thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._reserved = 0
        self._waiting: OrderedDict[Slot, None] = OrderedDict()

    def __len__(self) -> int:
        """Images that hold a place: being decoded or waiting, not those in a batch."""
        return self._reserved + len(self._waiting)

    def reserve(self, images: int) -> None:
        """Holds so many places; the caller has compared the queue's length with its limit before."""
        self._reserved += images

    def put(self, slot: Slot, pixels: NDArray[np.uint8], now: float) -> None:
        """Lets a reserved image wait for a batch."""
        self._reserved -= 1
        slot.pixels, slot.stage, slot.waiting_since = pixels, Stage.WAITING, now
        self._waiting[slot] = None

    def leave(self, slot: Slot) -> None:
        """Takes an image out, wherever it is; one that runs already is only marked."""
        if slot.stage is Stage.RESERVED:
            self._reserved -= 1
        elif slot.stage is Stage.WAITING:
            del self._waiting[slot]
        slot.stage = Stage.GONE

    def cut(self, now: float, closing: bool = False) -> Cut:
        """The expired images, and the batch that a free engine runs now."""
        expired = [slot for slot in self._waiting if slot.deadline <= now]
        for slot in expired:
            self.leave(slot)
        if not self._waiting:
            return Cut([], expired)
        age_s = now - next(iter(self._waiting)).waiting_since
        size = batch_size_now(len(self._waiting), age_s, self.limits, closing)
        if size == 0:
            return Cut([], expired, self.limits.max_queue_delay_s - age_s)
        batch = [self._waiting.popitem(last=False)[0] for _ in range(size)]
        for slot in batch:
            slot.stage = Stage.RUNNING
        return Cut(batch, expired)

    def clear(self) -> list[Slot]:
        """All waiting images, taken out."""
        slots = list(self._waiting)
        for slot in slots:
            self.leave(slot)
        return slots
