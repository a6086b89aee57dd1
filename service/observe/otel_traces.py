"""Spans through OpenTelemetry's library, sent over OTLP/HTTP; needs the extra `otel`.

A request becomes spans when it has its answer: one of the server, and below it one per stage, made of the times that
`Server-Timing` tells as well. What the settings do not say (headers, sampler, batches, resource attributes …) the
library reads from OpenTelemetry's own environment variables.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from model._version import __version__
from service.observe.stage_times import Interval
from service.observe.traces import AnsweredRequest

FLUSH_S = 3.0
"""How long a shutdown waits for the collector to take the last spans."""

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
"""Those that semantic conventions let stand as they are."""

MAX_PATH = 200
"""Characters of a path that a client made up."""

NANOSECONDS = 1_000_000_000


class OtelTraces:
    """A tracer of its own, not the process-wide one: two apps in one process do not share it."""

    def __init__(self, url: str) -> None:
        """`url` is where the collector takes traces over OTLP/HTTP."""
        self._url = url
        ours = Resource.create({"service.name": "freqmerge", "service.version": __version__})
        resource = ours.merge(OTELResourceDetector().detect())  # what the operator calls the service wins
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("freqmerge", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def open(self) -> None:
        """Starts the thread that sends spans."""
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=self._url)))

    async def close(self) -> None:
        """Sends what is left, for `FLUSH_S` at most; a collector that is away must not hold up the end."""
        closing = threading.Thread(target=self._provider.shutdown, name="freqmerge-traces", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, FLUSH_S)

    def record(self, request: AnsweredRequest) -> str:
        """The id of the trace; a trace that the caller began goes on, and is sampled as the caller has it."""
        origin = time.time_ns() - round(time.perf_counter() * NANOSECONDS)
        span = self._tracer.start_span(
            _name(request),
            self._parent(request),
            SpanKind.SERVER,
            _attributes(request),
            start_time=_at(origin, request.began),
        )
        if span.is_recording():
            self._record_stages(span, request.stages, origin)
        if request.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(_at(origin, request.ended))
        return f"{span.get_span_context().trace_id:032x}"

    def _record_stages(self, server: Span, stages: Sequence[Interval], origin: int) -> None:
        below = set_span_in_context(server, Context())
        for stage in stages:
            span = self._tracer.start_span(stage.name, below, start_time=_at(origin, stage.began))
            span.end(_at(origin, stage.ended))

    def _parent(self, request: AnsweredRequest) -> Context:
        """The caller's span (W3C Trace Context); nothing if there is none, or more than one."""
        if len(request.parents) != 1:
            return Context()
        carrier = {"traceparent": request.parents[0], "tracestate": ",".join(request.states)}
        return self._propagator.extract(carrier, Context())


def _at(origin: int, seconds: float) -> int:
    """Nanoseconds since 1970."""
    return origin + round(seconds * NANOSECONDS)


def _name(request: AnsweredRequest) -> str:
    method = request.method if request.method in METHODS else "HTTP"
    return method if request.route is None else f"{method} {request.route}"


def _attributes(request: AnsweredRequest) -> dict[str, AttributeValue]:
    """By OpenTelemetry's conventions for HTTP servers. Neither query nor address: they hold image ids, and people."""
    attributes: dict[str, AttributeValue] = {
        "http.request.method": request.method if request.method in METHODS else "_OTHER",
        "url.path": request.path[:MAX_PATH],
        "url.scheme": request.scheme,
        "network.protocol.version": request.http_version,
        "http.response.status_code": request.status,
        "freqmerge.request_id": request.request_id,
    }
    if request.route is not None:
        attributes["http.route"] = request.route
    if request.refusal is not None:
        attributes["error.type" if request.status >= 500 else "freqmerge.refusal"] = request.refusal
    return attributes
