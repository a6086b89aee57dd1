"""The one middleware, plain ASGI: request id, stage times, metrics, sampled log line, and the last resort."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Draining, RequestError
from service.http.exchange import SCOPE_KEY, Exchange, request_id
from service.http.pace import Arrivals, Pace
from service.http.problems import internal_error, problem_response
from service.http.security import security_headers
from service.observe import log as logs
from service.observe.stage_times import Stages, TracedStages
from service.observe.traces import AnsweredRequest, Traces
from service.runtime.service import Service

log = logging.getLogger(__name__)

TOO_LATE = "expected a running service, found one that shut down before the answer was ready; send it again"

UNMATCHED = "unmatched"
"""Route label of requests that no route took: paths that clients invent must not become label values."""


POLLED = frozenset({"/live", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Routes that machines ask every few seconds."""


class Observe:
    """Wraps an app; every answer leaves with a request id and stage times, and is counted."""

    def __init__(self, app: ASGIApp, service: Service, traces: Traces | None = None) -> None:
        self._app = app
        self._service = service
        self._traces = traces
        self._stages = Stages if traces is None else TracedStages
        self._arrivals = Arrivals(Pace.of(service.settings))
        self._sampled = logs.Sampler(service.settings.log_sample)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(request_id(Headers(scope=scope).get("x-request-id")), self._arrivals, stages=self._stages())
        scope[SCOPE_KEY] = exchange
        outgoing = _Outgoing(send, exchange, self._service)
        self._service.metrics.in_flight += 1
        try:
            await self._app(scope, receive, outgoing.send)
        except asyncio.CancelledError:  # the server has waited long enough for its end
            await self._refuse(Draining(TOO_LATE), scope, outgoing)
        except Exception as error:
            fields = {"request_id": exchange.request_id, "path": scope["path"]}
            log.error("unexpected error", exc_info=error, extra={"fields": fields})
            await self._refuse(internal_error(), scope, outgoing)
        finally:
            self._record(scope, exchange, outgoing.status)

    async def _refuse(self, error: RequestError, scope: Scope, outgoing: _Outgoing) -> None:
        if outgoing.status == 0:
            response = problem_response(error, Request(scope))
            await response(scope, _no_more, outgoing.send)

    def _record(self, scope: Scope, exchange: Exchange, status: int) -> None:
        self._service.metrics.in_flight -= 1
        if exchange.body is not None:
            self._service.bodies.give(exchange.body.held)
        seconds = time.perf_counter() - exchange.started
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self._service.metrics.request(route, status, seconds)
        if exchange.refusal is not None:
            self._service.metrics.rejected(exchange.refusal)
        self._service.metrics.stages(exchange.stages.seconds)
        if self._traces is not None and route not in POLLED:
            exchange.trace_id = self._traces.record(_answered(scope, exchange, status, seconds))
        sampled, failed = self._sampled(), status >= 500 and route not in POLLED  # probes fail while a process starts
        if sampled or failed:
            level = logging.WARNING if failed else logging.INFO
            logs.requests.log(level, "request", extra={"fields": _line(scope, exchange, route, status, seconds)})


class _Outgoing:
    """The way out of one request, which adds our headers and remembers the status (0: nothing sent yet)."""

    def __init__(self, send: Send, exchange: Exchange, service: Service) -> None:
        self.status = 0
        self._send = send
        self._exchange = exchange
        self._service = service

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message.get("headers", ())
            message["headers"] = [*headers, *security_headers(headers), *self._headers()]
        await self._send(message)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", self._exchange.request_id.encode("latin-1"))]
        if self._exchange.stages.seconds:
            headers.append((b"server-timing", self._exchange.stages.server_timing().encode("latin-1")))
        if self._service.leaving:  # a client must not send its next request into a connection that is about to close
            headers.append((b"connection", b"close"))
        return headers


async def _no_more() -> Message:
    return {"type": "http.disconnect"}


def _answered(scope: Scope, exchange: Exchange, status: int, seconds: float) -> AnsweredRequest:
    headers, stages = Headers(scope=scope), exchange.stages
    return AnsweredRequest(
        request_id=exchange.request_id,
        method=scope["method"],
        path=scope["path"],
        route=getattr(scope.get("route"), "path", None),
        scheme=scope["scheme"],
        http_version=scope["http_version"],
        status=status,
        refusal=exchange.refusal,
        began=exchange.started,
        ended=exchange.started + seconds,
        stages=stages.intervals if isinstance(stages, TracedStages) else (),
        parents=headers.getlist("traceparent"),
        states=headers.getlist("tracestate"),
    )


def _line(scope: Scope, exchange: Exchange, route: str, status: int, seconds: float) -> dict[str, Any]:
    refused = {} if exchange.refusal is None else {"reason": exchange.refusal}
    traced = {} if exchange.trace_id is None else {"trace_id": exchange.trace_id}
    return {
        "method": scope["method"],
        "route": route,
        "code": status,
        "duration_ms": round(1000 * seconds, 3),
        "request_id": exchange.request_id,
        "stages_ms": exchange.stages.milliseconds(),
        **refused,
        **traced,
    }
