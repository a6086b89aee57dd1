"""uvicorn's HTTP protocol with bounds on what no route sees: the header of a request, and time between requests.

The parser takes headers of any size and waits for their end for ever. Here a connection is always in one of four
states, and each ends by itself:

a request under way             the app's own limits of bytes and time
an unfinished header            `max_header_bytes` and `header_timeout_s`
a body that nobody reads        its request is answered already: `body_timeout_s`
idle                            `keep_alive_s`, before the first request too

A request whose header arrives in one piece, as nearly all do, sets no timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import PROBLEM_MEDIA_TYPE, BadHttp, HeaderTooLarge, RequestError, SlowHeader, problem
from service.http.exchange import request_id
from service.http.security import security_headers

if TYPE_CHECKING:
    from service.runtime.service import Service

LINGER_S = 1.0
LINGER_BYTES = 1 << 20
"""How long, and for how many bytes, a refused client may go on sending: closing at once would reset the connection
before it has read why."""

NO_TARGET = "*"
"""Instance of a problem whose request never became one: HTTP's own name for the server as a whole."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection; `guarded` makes the class that knows its service."""

    service: ClassVar[Service]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limit = self.service.settings.max_header_bytes
        self._in_head = True  # between two messages too
        self._pending = 0  # bytes since the last that ended a header or a message, or belonged to a body
        self._refused = False
        self._discarded = 0
        self._timer: asyncio.TimerHandle | None = None

    # --- the transport's calls ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client that says nothing at all is idle."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leaves no timer behind."""
        self._disarm()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, in pieces where it could otherwise see more of a header than the limit.

        Where a message ends inside a piece, the next one counts from the next piece on: a pipelined header, or
        trailers behind a body, can have up to twice the limit.
        """
        start = 0
        while start < len(data) and not self._refused and not self.transport.is_closing():
            piece = data[start : start + self._limit - self._pending]
            start += len(piece)
            self._feed(piece)
        if self._refused:
            self._discard(len(data) - start)

    # --- the parser's calls, and uvicorn's own ---

    def on_message_begin(self) -> None:
        """A message that begins in the piece in which another ended counts as unfinished too."""
        self._pending = self._pending or 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The app takes over."""
        super().on_headers_complete()
        self._in_head, self._pending = False, 0
        self._disarm()

    def on_body(self, body: bytes) -> None:
        """Bounded by the app; what stands between two parts of a body (trailers, extensions of chunks) is not."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next request may begin."""
        self._in_head, self._pending = True, 0
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The clock of a header that has begun behind the answered request starts now."""
        super().on_response_complete()
        if self._pending and not self._busy:
            self._watch()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up."""
        self._refuse(BadHttp("expected a valid HTTP/1.1 request (RFC 9112), found one that is not; correct the client"))

    # --- bounds ---

    @property
    def _busy(self) -> bool:
        """Whether an answer is owed."""
        return self.cycle is not None and not self.cycle.response_complete

    def _feed(self, piece: bytes) -> None:
        self._pending += len(piece)
        super().data_received(piece)
        if self._refused:
            return
        if self._pending >= self._limit:
            self._refuse(
                HeaderTooLarge(
                    f"expected a request line and header fields of at most {self._limit:,} bytes together, found more; "
                    "send fewer or shorter ones"
                )
            )
        elif not self._busy:
            self._watch()

    def _watch(self) -> None:
        """Sets the one timer that fits the state, unless it runs; uvicorn stops its own with every byte."""
        if not self._in_head:
            self._arm(self.service.settings.body_timeout_s)
        elif self._pending:
            self._arm(self.service.settings.header_timeout_s)
        elif self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _arm(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if not self._in_head:  # its request has been answered
            self.transport.close()
            return
        self._refuse(
            SlowHeader(
                f"expected the whole request header within {self.service.settings.header_timeout_s:g} s, "
                "found it unfinished; send it again"
            )
        )

    # --- the end ---

    def _refuse(self, error: RequestError) -> None:
        """Ends the connection, with an answer unless the client would take it for another request's."""
        self._refused = True
        self._disarm()
        self._unset_keepalive_if_required()
        self.service.metrics.rejected(error.reason)
        if self._busy and (self._in_head or self.pipeline or self.cycle.response_started):
            self.cycle.keep_alive = False  # the last request before it: what is owed is sent, then uvicorn closes
            return
        if self._in_head or self._busy:
            self.transport.write(raw_answer(error, self.server_state.default_headers))
        if self._busy:  # its own body is what was refused
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._linger()

    def _linger(self) -> None:
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._timer = self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self.transport.close()


def guarded(service: Service) -> type[GuardedProtocol]:
    """The protocol with this service's limits and metrics: uvicorn takes a class and gives it no arguments of ours."""

    class ServiceProtocol(GuardedProtocol):
        pass

    ServiceProtocol.service = service
    return ServiceProtocol


def raw_answer(error: RequestError, first: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a problem document that closes the connection; `first` are headers to begin with."""
    identity = request_id(None)
    body = orjson.dumps(problem(error, NO_TARGET, identity))
    headers = [
        *first,
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"x-request-id", identity.encode()),
        *security_headers(()),
    ]
    fields = b"".join(b"%b: %b\r\n" % field for field in headers)
    return STATUS_LINE[error.status] + fields + b"\r\n" + body
