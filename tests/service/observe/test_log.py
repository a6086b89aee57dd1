"""Logs: JSON lines, sampled requests, never a picture."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator

import pytest

from service.observe import log
from tests.service.conftest import Running
from tests.support.doubles import POISON, FakeEngine, picture

Start = Callable[..., Awaitable[Running]]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where a configured log goes; the logging of the test run is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    text = io.StringIO()
    log.configure("info", text)
    yield text
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_of_json_with_its_fields(stream: io.StringIO) -> None:
    logging.getLogger("service.x").info("two\nlines", extra={"fields": {"count": 3, "path": object}})
    logging.getLogger("service.x").debug("not at this level")
    [line] = lines(stream)
    assert (line["level"], line["logger"], line["message"], line["count"]) == (
        "info",
        "service.x",
        "two\nlines",
        3,
    )
    assert str(line["time"]).endswith("+00:00")


def test_an_exception_leaves_its_traceback_in_the_same_line(stream: io.StringIO) -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logging.getLogger("service.x").exception("oops")
    [line] = lines(stream)
    assert "ZeroDivisionError" in str(line["traceback"])


@pytest.mark.parametrize(("share", "taken"), [(0, []), (1, [0, 1, 2, 3]), (0.5, [0, 2]), (0.25, [0])])
def test_a_sampler_takes_its_share_evenly_and_the_first_one(share: float, taken: list[int]) -> None:
    sampler = log.Sampler(share)
    assert [index for index in range(4) if sampler()] == taken


def test_a_tenth_is_a_tenth_over_a_long_time() -> None:
    sampler = log.Sampler(0.1)
    assert sum(sampler() for _ in range(10_000)) == 1000


@pytest.mark.anyio
async def test_a_request_leaves_a_line_without_a_byte_of_its_picture(start: Start, stream: io.StringIO) -> None:
    app = await start(log_sample=1.0)
    data = picture(7)
    await app.client.post("/classify?top_k=1", content=data, headers={"X-Request-ID": "r-1"})
    [line] = [line for line in lines(stream) if line["logger"] == "service.request"]
    assert (line["method"], line["route"], line["code"], line["request_id"]) == (
        "POST",
        "/classify",
        200,
        "r-1",
    )
    assert set(line["stages_ms"]) == {"read", "decode", "queue", "copy", "engine", "encode"}  # type: ignore[call-overload]
    assert len(json.dumps(line)) < 600
    assert "IHDR" not in stream.getvalue()


@pytest.mark.anyio
async def test_requests_are_sampled(start: Start, stream: io.StringIO) -> None:
    app = await start(log_sample=0.25)
    for _ in range(8):
        await app.client.get("/live")
    assert len([line for line in lines(stream) if line["logger"] == "service.request"]) == 2


@pytest.mark.anyio
async def test_a_request_that_failed_always_leaves_a_warning_with_its_id_and_reason(
    start: Start, stream: io.StringIO, engine: FakeEngine
) -> None:
    app = await start(log_sample=0)
    headers = {"X-Request-ID": "r-9"}
    assert (await app.client.post("/classify", content=picture(POISON), headers=headers)).status_code == 500
    assert (await app.client.post("/classify", content=picture(7))).status_code == 200
    assert (await app.client.post("/classify", content=b"text")).status_code == 415
    [line] = [line for line in lines(stream) if line["logger"] == "service.request"]
    assert (line["level"], line["code"], line["request_id"], line["reason"]) == (
        "warning",
        500,
        "r-9",
        "engine_failed",
    )


@pytest.mark.anyio
async def test_a_probe_of_a_service_that_is_not_ready_is_sampled_like_any_request(
    start: Start, stream: io.StringIO
) -> None:
    app = await start(log_sample=0)
    app.service.announce_shutdown()
    assert (await app.client.get("/ready")).status_code == 503
    assert [line for line in lines(stream) if line["logger"] == "service.request"] == []
