"""One raw keep-alive connection to a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from tests.load.raw_http import Answer, AnswerReader, WireError

NO_ANSWER = Answer(0, b"", True)
"""What a request on a broken connection gets."""


class Connection(asyncio.Protocol):
    """A connection with one request on its way at most; tells `done` about every end, `NO_ANSWER` included."""

    def __init__(self, done: Callable[[Connection, Answer], None]) -> None:
        self.since = 0.0
        """When the clock of the present request started."""
        self._busy = False
        self._transport: asyncio.Transport | None = None
        self._done = done
        self._reader = AnswerReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast(asyncio.Transport, transport)

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, since: float) -> None:
        """Sends a request whose clock started at `since`."""
        self.since, self._busy = since, True
        if self._transport is None or self._transport.is_closing():
            self._finish(NO_ANSWER)
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Reads on; tells when an answer is complete."""
        try:
            for answer in self._reader.feed(data):
                if answer.close:
                    self.close()
                self._finish(answer)
        except WireError:
            self.close()
            self._finish(NO_ANSWER)

    def connection_lost(self, exc: Exception | None) -> None:
        """A request that was on its way has no answer."""
        self._finish(NO_ANSWER)

    def close(self) -> None:
        """Ends the connection."""
        if self._transport is not None:
            self._transport.close()

    def _finish(self, answer: Answer) -> None:
        if self._busy:
            self._busy = False
            self._done(self, answer)
