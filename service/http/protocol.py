"""uvicorn's HTTP protocol with bounds on what no route sees: the header of a request, and time between requests.

The parser takes headers of any size and waits for their end for ever. Here a connection is always in one of four
states, and each ends by itself:

a request under way             the app's own limits of bytes and time
an unfinished header            `max_header_bytes` and `header_timeout_s`
a body that nobody reads        its request is answered already: the pace of any body, and the bytes of the largest
idle                            `keep_alive_s`, before the first request too

A request whose header arrives in one piece, as nearly all do, sets no timer.

All connections together are bounded by `max_connections`. One more takes the place of the one that has kept the service
waiting longest, whatever for: the rest of a header or a body, a next request, or that its client reads an answer. So
clients that send slowly, or nothing, keep nobody out, however many they are. Only where the service still works on an
answer for each of them, the new one is refused.

Offers of another protocol (`Upgrade`) are ignored, as HTTP has it; uvicorn would lose the body of such a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import PROBLEM_MEDIA_TYPE, BadHttp, Crowded, HeaderTooLarge, RequestError, SlowHeader, problem
from service.http.connection_limit import ProbesOnly
from service.http.exchange import request_id
from service.http.pace import Pace
from service.http.security import security_headers
from service.settings import FORM_OVERHEAD_BYTES

if TYPE_CHECKING:
    from service.runtime.service import Service

LINGER_S = 1.0
LINGER_BYTES = 1 << 20
"""How long, and for how many bytes, a refused client may go on sending: closing at once would reset the connection
before it has read why."""

PROGRESS_BYTES = 1 << 18
"""Of a body, after which its connection counts as if it had only now begun to be waited for."""

OFFERS = (b"upgrade", b"http2-settings")
"""Header fields, and tokens of `Connection`, that offer another protocol."""

NO_TARGET = "*"
"""Instance of a problem whose request never became one: HTTP's own name for the server as a whole."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection; `guarded` makes the class that knows its service."""

    service: ClassVar[Service]
    pace: ClassVar[Pace]
    waiting: ClassVar[dict[GuardedProtocol, None]]
    """Connections whose client has to do something next, the one that is waited for longest first."""

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
        self._progress = 0  # bytes of bodies since this was last put to the end of those that are waited for
        self._offer = b""  # a header that offers another protocol, without its offer
        self._surplus = False
        self._refused = False
        self._ending = False  # answered for the last time, while a body still comes
        self._discarded = self._judged = 0
        self._timer: asyncio.TimerHandle | None = None

    # --- the transport's calls ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client that says nothing at all is idle."""
        super().connection_made(transport)
        self._way_out = _WayOut(transport, self._close_answered)
        if len(self.connections) > self.service.settings.max_connections:
            self._make_room()
        self.waiting[self] = None
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leaves no timer behind, and no circle of references."""
        self._way_out.close = self.transport.close
        self._disarm()
        self._unset_keepalive_if_required()
        self.waiting.pop(self, None)
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

    def pause_writing(self) -> None:
        """A client that does not read what it is sent keeps the service waiting, too."""
        super().pause_writing()
        self.waiting.setdefault(self, None)

    def resume_writing(self) -> None:
        """Its answer may go on."""
        super().resume_writing()
        if self._busy and self._in_head:
            self._stop_waiting()

    # --- the parser's calls, and uvicorn's own ---

    def on_message_begin(self) -> None:
        """A message that begins in the piece in which another ended counts as unfinished too."""
        self._pending = self._pending or 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The app takes over, unless the header has to be read again or comes behind the last answer."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offer = self._without_offer()
        if self._offer or self._ending:
            return
        super().on_headers_complete()
        self.cycle.transport = self._way_out  # type: ignore[assignment]  # as much of one as it uses
        if self._surplus:
            self.cycle.keep_alive = False
        self._in_head, self._pending = False, 0
        self._disarm()

    def on_body(self, body: bytes) -> None:
        """Bounded by the app; what stands between two parts of a body (trailers, extensions of chunks) is not."""
        self._pending = 0
        if self.cycle.response_complete:
            self._skip(len(body))
        else:
            self._note_progress(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next request may begin."""
        if self._offer:  # its body is still to come
            return
        self._in_head, self._pending = True, 0
        self._disarm()
        super().on_message_complete()
        if self._busy:
            self._stop_waiting()
        elif self._ending:
            self.transport.close()

    def on_response_complete(self) -> None:
        """The clock of what has begun behind the answered request, or of the rest of its own body, starts now."""
        super().on_response_complete()
        if not self._busy:
            self.waiting[self] = None
            if not self._in_head:
                self._discarded = self._judged = 0
                self._watch()
            elif self._pending:
                self._watch()
        elif not self._in_head:
            self.waiting[self] = None

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
        self._unset_keepalive_if_required()
        self._parse(piece)
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

    def _parse(self, data: bytes) -> None:
        """What uvicorn does with bytes, but for offers of another protocol."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stop:  # behind the header: the parser takes the rest for the other's
                data = self._declined() + data[stop.args[0] :] if self._offer else b""
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")
                return

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
            if self._discarded - self._judged < self.pace.least_bytes:
                self.transport.close()
                return
            self._judged, self._timer = self._discarded, None
            self._watch()
            return
        self._refuse(
            SlowHeader(
                f"expected the whole request header within {self.service.settings.header_timeout_s:g} s, "
                "found it unfinished; send it again"
            )
        )

    def _note_progress(self, size: int) -> None:
        """A body that makes progress is not the one that is waited for longest."""
        self._progress += size
        if self._progress >= PROGRESS_BYTES:
            self._progress = 0
            if self in self.waiting:
                del self.waiting[self]
                self.waiting[self] = None

    def _skip(self, size: int) -> None:
        """Counts bytes of a body whose request is answered; a client has to send them before it can read why."""
        self._discarded += size
        settings = self.service.settings
        if self._discarded > max(settings.max_upload_bytes, settings.max_batch_upload_bytes) + FORM_OVERHEAD_BYTES:
            self.transport.close()

    # --- offers of another protocol ---

    def _without_offer(self) -> bytes:
        """The header that was just read, without the offer."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(token for token in value.split(b",") if token.strip().lower() not in OFFERS)
            if value and name not in OFFERS:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def _declined(self) -> bytes:
        """The header without the offer, for a parser that has not skipped its body."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        header, self._offer = self._offer, b""
        return header

    # --- too many connections ---

    def _stop_waiting(self) -> None:
        """The client has done its part, unless it does not read."""
        if not self.flow.write_paused:
            self.waiting.pop(self, None)

    def _make_room(self) -> None:
        longest = next(iter(self.waiting), None)
        if longest is not None:
            longest._give_way()
            return
        self._surplus = True
        self.app = ProbesOnly(self.app, self.service)

    def _give_way(self) -> None:
        """Ends the connection for another one; a client whose request is not whole hears why."""
        self.waiting.pop(self, None)
        answered = not self._in_head and not self._busy
        if self.transport.get_write_buffer_size():  # it does not read: closing would wait for it
            self.transport.abort()
        elif self._refused or answered or (self._in_head and not self._pending):
            self.transport.close()
        else:
            self._refuse(Crowded.at(self.service.settings.max_connections))

    # --- the end ---

    def _close_answered(self) -> None:
        """Closes the connection behind its last answer, but not before the client has sent a body that it is sending:
        closing at once would reset the connection before it has read the answer."""
        if self._in_head or not self.cycle.response_complete or not self.transport.can_write_eof():
            self.transport.close()
        elif not self.transport.is_closing():
            self._ending = True
            self.transport.write_eof()

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


class _WayOut:
    """The connection as an answer sees it: closing waits for the client."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


def guarded(service: Service) -> type[GuardedProtocol]:
    """The protocol with this service's limits and metrics: uvicorn takes a class and gives it no arguments of ours."""

    class ServiceProtocol(GuardedProtocol):
        pass

    ServiceProtocol.service = service
    ServiceProtocol.pace = Pace.of(service.settings)
    ServiceProtocol.waiting = {}
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
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
        *security_headers(()),
    ]
    fields = b"".join(b"%b: %b\r\n" % field for field in headers)
    return STATUS_LINE[error.status] + fields + b"\r\n" + body
