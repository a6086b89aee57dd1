"""Dropping the work for a client that has closed its connection."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.requests import Request

from service.body import wait_until_gone
from service.errors import ClientGone


class CancelledWhenGone:
    """Cancels the block when the client leaves, and turns that cancellation into `ClientGone`.

    The server by itself lets a handler run on for nobody. Enter it after the body was read: both listen to
    the same channel. Works as `asyncio.timeout` does, with a closed connection in the place of the clock.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._gone = False
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        """Starts to listen."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("CancelledWhenGone needs a task to cancel")
        self._task = task
        self._watch = asyncio.create_task(self._listen())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops to listen; raises `ClientGone` if it was the client that ended the block."""
        if self._watch is not None:
            self._watch.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise ClientGone("the client closed the connection before its answer was ready") from None

    async def _listen(self) -> None:
        await wait_until_gone(self._request)
        self._gone = True
        self._task.cancel()
