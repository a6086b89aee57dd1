"""A client that asks one thing at a time on one connection, and one that leaves."""

from __future__ import annotations

import asyncio
import contextlib

from tests.load.connection import Connection
from tests.load.raw_http import Answer
from tests.load.targets import HOST

PATIENCE_S = 60.0
"""A server that is silent for so long has lost a request."""


class Talk:
    """A connection that is made again when the server ends it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: Connection | None = None
        self._answer: asyncio.Future[Answer] | None = None

    async def ask(self, request: bytes) -> Answer:
        """The server's answer; status 0 if it closed without one. Raises `TimeoutError` after `PATIENCE_S`."""
        loop = asyncio.get_running_loop()
        if self._connection is None or not self._connection.usable:
            _, self._connection = await loop.create_connection(lambda: Connection(self._done), HOST, self._port)
        self._answer = loop.create_future()
        self._connection.send(request, 0.0)
        async with asyncio.timeout(PATIENCE_S):
            return await self._answer

    def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()

    def _done(self, connection: Connection, answer: Answer) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)


async def ask(port: int, request: bytes) -> Answer:
    """The answer on a connection of its own."""
    talk = Talk(port)
    try:
        return await talk.ask(request)
    finally:
        talk.close()


async def leave(port: int, request: bytes, after_s: float) -> None:
    """Sends a request, or its beginning, and goes without waiting for the answer."""
    _, writer = await asyncio.open_connection(HOST, port)
    writer.write(request)
    await asyncio.sleep(after_s)
    writer.close()
    with contextlib.suppress(OSError):  # the server may have been quicker
        await writer.wait_closed()
