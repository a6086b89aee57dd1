"""Traces: spans of every stage, in the caller's own trace, seen by a collector that takes OTLP/HTTP."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service.app import create_app
from service.errors import StartupError
from service.observe import otel_traces
from service.settings import Settings
from tests.service.conftest import DEADLINE_S, Running, running
from tests.service.http.test_server import checkpoint, spawn  # noqa: F401 - fixtures
from tests.support.collector import Collector, attributes, collecting
from tests.support.doubles import POISON, FakeEngine, loader, picture
from tests.support.paths import ROOT
from tests.support.process import PATIENCE_S, Process

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{CALLER}-01"
UNSAMPLED = f"00-{TRACE}-{CALLER}-00"

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


async def traced(collector: Collector, engine: FakeEngine, *requests: httpx.Request, **settings: Any) -> list[Any]:
    """All spans that have arrived when an app that answered these requests has ended."""
    async with running(loader(engine), **{ENDPOINT: collector.url}, **settings) as app:
        for request in requests:
            await app.client.send(request)
    return collector.spans


def post(path: str = "/classify", content: bytes | None = None, **headers: str) -> httpx.Request:
    return httpx.Request("POST", f"http://test{path}", content=content or picture(7), headers=headers)


def by_name(spans: list[Any]) -> dict[str, Any]:
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


async def test_a_request_is_a_span_with_one_below_it_for_every_stage(collector: Collector, engine: FakeEngine) -> None:
    before = time.time_ns()
    spans = by_name(await traced(collector, engine, post("/classify?top_k=3", **{"X-Request-ID": "r-1"})))
    after = time.time_ns()
    assert list(spans) == ["read", "decode", "queue", "copy", "engine", "encode", "POST /classify"]
    server = spans.pop("POST /classify")
    assert (server.kind, server.parent_span_id) == (Span.SPAN_KIND_SERVER, b"")
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "url.path": "/classify",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "freqmerge.request_id": "r-1",
    }
    assert server.status.code == Status.STATUS_CODE_UNSET
    for stage in spans.values():
        assert (stage.trace_id, stage.parent_span_id) == (server.trace_id, server.span_id)
        assert stage.kind == Span.SPAN_KIND_INTERNAL
        assert before - 1000 <= server.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.start_time_unix_nano <= stage.end_time_unix_nano <= server.end_time_unix_nano <= after + 1000


async def test_the_stages_follow_each_other_and_last_as_long_as_server_timing_says(
    collector: Collector, engine: FakeEngine
) -> None:
    async with running(loader(engine), **{ENDPOINT: collector.url}) as app:
        answer = await app.client.post("/classify", content=picture(7))
    spans = by_name(collector.spans)
    order = [spans[stage] for stage in ("read", "decode", "queue", "copy", "engine", "encode")]
    for earlier, later in pairwise(order):
        assert earlier.end_time_unix_nano <= later.start_time_unix_nano + 1000
    told = dict(stage.split(";dur=") for stage in answer.headers["server-timing"].split(", "))
    for stage, milliseconds in told.items():
        lasted = (spans[stage].end_time_unix_nano - spans[stage].start_time_unix_nano) / 1e6
        assert lasted == pytest.approx(float(milliseconds), abs=0.002)


async def test_a_trace_that_the_caller_began_goes_on(collector: Collector, engine: FakeEngine) -> None:
    headers = {"traceparent": SAMPLED, "tracestate": "shop=abc,other=1"}
    spans = by_name(await traced(collector, engine, post(**headers)))
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert spans["POST /classify"].parent_span_id.hex() == CALLER
    assert spans["POST /classify"].trace_state == "shop=abc,other=1"


async def test_a_caller_that_does_not_sample_its_trace_gets_no_spans(collector: Collector, engine: FakeEngine) -> None:
    assert await traced(collector, engine, post(traceparent=UNSAMPLED)) == []


@pytest.mark.parametrize(
    "parents", [["no-trace"], [f"00-{'0' * 32}-{CALLER}-01"], [f"ff-{TRACE}-{CALLER}-01"], [SAMPLED, SAMPLED]]
)
async def test_a_traceparent_that_is_not_valid_begins_a_new_trace(
    collector: Collector, engine: FakeEngine, parents: list[str]
) -> None:
    request = post()
    request.headers = httpx.Headers([*request.headers.items(), *(("traceparent", parent) for parent in parents)])
    spans = await traced(collector, engine, request)
    assert len(spans) == 7
    assert TRACE not in {span.trace_id.hex() for span in spans}
    assert {span.parent_span_id for span in spans if span.kind == Span.SPAN_KIND_SERVER} == {b""}


async def test_the_samplers_of_opentelemetry_decide(
    collector: Collector, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    spans = await traced(collector, engine, post(), post(traceparent=SAMPLED))
    assert {span.trace_id.hex() for span in spans} == {TRACE}


async def test_the_resource_names_the_service_as_the_operator_does(
    collector: Collector, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=vision")
    await traced(collector, engine, post())
    assert (collector.resources[0]["service.name"], collector.resources[0]["telemetry.sdk.language"]) == (
        "freqmerge",
        "python",
    )
    assert collector.headers[0]["x-tenant"] == "vision"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vision")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    await traced(collector, engine, post())
    assert collector.resources[1]["service.name"] == "vision"
    assert collector.resources[1]["deployment.environment.name"] == "staging"


async def test_a_failure_of_the_service_is_an_error_and_a_refusal_is_not(
    collector: Collector, engine: FakeEngine
) -> None:
    failed, refused, unmatched = [
        span
        for span in await traced(
            collector, engine, post(content=picture(POISON)), post(content=b"text"), post("/nowhere?secret=1")
        )
        if span.kind == Span.SPAN_KIND_SERVER
    ]
    assert (failed.name, failed.status.code) == ("POST /classify", Status.STATUS_CODE_ERROR)
    assert attributes(failed)["error.type"] == "engine_failed"
    assert (refused.status.code, attributes(refused)["freqmerge.refusal"]) == (
        Status.STATUS_CODE_UNSET,
        "unsupported_format",
    )
    assert (unmatched.name, attributes(unmatched)["url.path"]) == ("POST", "/nowhere")
    assert "http.route" not in attributes(unmatched)
    assert "secret" not in str(unmatched)


async def test_a_batch_and_the_inference_protocol_are_traced_too(collector: Collector, engine: FakeEngine) -> None:
    async with running(loader(engine), **{ENDPOINT: collector.url}) as app:
        files = [("file", (f"{value}.png", picture(value))) for value in (3, 5, 7)]
        assert (await app.client.post("/classify/batch", files=files)).status_code == 200
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": np.zeros(192, int).tolist()}
        assert (await app.client.post("/v2/models/double/infer", json={"inputs": [tensor]})).status_code == 200
    names = [span.name for span in collector.spans]
    assert names[:7] == ["read", "decode", "queue", "copy", "engine", "encode", "POST /classify/batch"]
    assert names[7:] == ["read", "queue", "copy", "engine", "encode", "POST /v2/models/{model_name}/infer"]


async def test_probes_and_scrapes_are_not_traced(collector: Collector, engine: FakeEngine) -> None:
    probes = [httpx.Request("GET", f"http://test{path}") for path in ("/live", "/ready", "/metrics", "/v2/health/live")]
    assert await traced(collector, engine, *probes) == []


async def test_the_log_line_of_a_traced_request_names_its_trace(
    collector: Collector, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service.request"):
        await traced(collector, engine, post(traceparent=SAMPLED), log_sample=1.0)
    [line] = [record for record in caplog.records if record.name == "service.request"]
    assert line.fields["trace_id"] == TRACE  # type: ignore[attr-defined]


def test_without_a_collector_nothing_of_opentelemetry_is_loaded() -> None:
    script = (
        "import sys; from service.app import create_app; from service.settings import Settings; create_app(Settings());"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert told.stdout.strip() == "[]"


async def test_without_a_collector_a_traceparent_changes_nothing(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(log_sample=1.0)
    with caplog.at_level(logging.INFO, "service.request"):
        assert (await app.client.send(post(traceparent=SAMPLED))).status_code == 200
    [line] = [record for record in caplog.records if record.name == "service.request"]
    assert "trace_id" not in line.fields  # type: ignore[attr-defined]


def test_missing_packages_are_told_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.observe.otel_traces", None)
    with pytest.raises(StartupError, match=r"pip install 'freqmerge\[otel\]', or set OTEL_TRACES_EXPORTER=none"):
        create_app(Settings(**{ENDPOINT: "http://127.0.0.1:4318"}), loader(FakeEngine()))


async def test_a_collector_that_does_not_answer_costs_no_request_and_holds_up_no_shutdown(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otel_traces, "FLUSH_S", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with running(loader(engine), **{ENDPOINT: f"http://127.0.0.1:{silent.getsockname()[1]}"}) as app:
            for _ in range(20):
                assert (await app.client.send(post())).status_code == 200
            began = time.monotonic()
        assert time.monotonic() - began < DEADLINE_S


async def test_a_server_process_sends_its_last_spans_when_it_is_told_to_end(
    spawn: Callable[..., Process],  # noqa: F811
    checkpoint: object,  # noqa: F811
) -> None:
    with collecting() as collector:
        process = spawn("--port", "0", checkpoint=checkpoint, **{ENDPOINT: collector.url})
        process.told("ready")
        with process.client() as client:
            answer = client.post("/classify", content=picture(90, (64, 48), "JPEG"), headers={"traceparent": SAMPLED})
            assert answer.status_code == 200
        process.popen.send_signal(signal.SIGTERM)
        assert process.ended()[0] == 0
        spans = by_name(collector.spans)
    assert set(spans) == {"read", "decode", "queue", "copy", "engine", "encode", "POST /classify"}
    assert spans["POST /classify"].parent_span_id.hex() == CALLER
