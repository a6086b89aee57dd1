"""Noticing that a client has closed its connection, so that nobody works for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.requests import Request

from service.errors import ClientGone
from service.http.body import wait_until_gone

LISTEN_AFTER_S = 0.005
"""Listening costs a task; a request that is answered sooner does without."""


class WhenGone:
    """Calls `left` once if the client leaves while the block runs.

    The server by itself lets a handler run on for nobody. Enter it after the body was read: both listen to
    the same channel.
    """

    def __init__(self, request: Request, left: Callable[[], None]) -> None:
        self._request = request
        self._left = left
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        """Starts to listen, in a moment."""
        self._timer = asyncio.get_running_loop().call_later(LISTEN_AFTER_S, self._begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops listening."""
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()

    def _begin(self) -> None:
        self._watch = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        await wait_until_gone(self._request)
        self._left()


class CancelledWhenGone:
    """Cancels the block when the client leaves, and turns that cancellation into `ClientGone`.

    Works as `asyncio.timeout` does, with a closed connection in the place of the clock.
    """

    def __init__(self, request: Request) -> None:
        self._gone = False
        self._watch = WhenGone(request, self._cancel)

    async def __aenter__(self) -> None:
        """Starts to listen."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("CancelledWhenGone needs a task to cancel")
        self._task = task
        self._watch.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops listening; raises `ClientGone` if it was the client that ended the block."""
        self._watch.__exit__(kind, error, trace)
        if self._gone and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise ClientGone("the client closed the connection before its answer was ready") from None

    def _cancel(self) -> None:
        self._gone = True
        self._task.cancel()
