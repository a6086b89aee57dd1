"""An engine on another replica, for a batcher that lets several batches be under way.

Nothing waits for a timer: while as many calls are under way as the batcher has lanes, the next one gathers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from model.engines.engine import EngineOutput
from service.errors import Draining, NotReady, RequestError
from service.ray.wire import Description, Facts, Reply, unpacked
from service.runtime.served import ServedModel

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""A call that a replica did not carry out is made once more, most likely on another: to classify twice does no harm."""

CALLS_PER_ENGINE = 2
"""Calls under way per engine replica: one whose batch runs, and one that waits for that batch to end."""

Call = Callable[[NDArray[np.uint8]], Awaitable[Reply]]


class RemoteEngine:
    """Runs a batch by a call, which it makes on the event loop while the batcher's thread waits.

    Raises `NotReady` if no replica has answered within `timeout_s`, and what the replica refused the call with.
    """

    def __init__(self, facts: Facts, call: Call, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self.kind, self.device, self.precision, self.reason, self.max_batch_size, self.native_size = facts
        self._call = call
        self._loop = loop
        self._timeout_s = timeout_s

    def warm_up(self) -> None:
        """One blank image there and back: the engine is warm, the way to it is not."""
        self.run(np.zeros((1, 3, self.native_size, self.native_size), np.uint8))

    def run(self, images: NDArray[np.uint8]) -> EngineOutput:
        """The answer for 1..max_batch_size images; not on the event loop, and from several threads at once."""
        return asyncio.run_coroutine_threadsafe(self._answer(images), self._loop).result()

    async def _answer(self, images: NDArray[np.uint8]) -> EngineOutput:
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._reply(images)
        except TimeoutError:
            raise NotReady(
                f"expected an engine replica that answers within {self._timeout_s:g} s, found none; try again later"
            ) from None
        if isinstance(reply, RequestError):
            raise reply
        return unpacked(reply)

    async def _reply(self, images: NDArray[np.uint8]) -> Reply:
        for _ in range(ATTEMPTS):
            reply = await self._call(images)
            if not isinstance(reply, NotReady | Draining):
                break
            log.warning("a call was not carried out", extra={"fields": {"images": len(images), "why": reply.detail}})
        return reply


def remote_model(
    description: Description, call: Call, loop: asyncio.AbstractEventLoop, timeout_s: float, engines: int
) -> ServedModel:
    """A model whose batches run on `engines` replicas."""
    engine = RemoteEngine(description.engine, call, loop, timeout_s)
    lanes = CALLS_PER_ENGINE * engines
    return ServedModel(engine, *description[1:], lanes=lanes, elsewhere=True)
