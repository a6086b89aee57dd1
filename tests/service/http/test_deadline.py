"""How long a request may wait: the service's own limit, or less if the client asks for less."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.requests import Request

from service.batching.batcher import Counts
from service.errors import BadParameter
from service.http.deadline import Deadline
from service.settings import Settings
from tests.service.conftest import Running
from tests.support.doubles import FakeEngine, picture
from tests.support.wire import RawRequest, problem

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]


def deadline(header: str | None) -> Deadline:
    headers = [] if header is None else [(b"x-request-timeout-ms", header.encode("latin-1"))]
    return Deadline.of(Request({"type": "http", "headers": headers}), Settings(request_timeout_s=2))


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 2.0), ("500", 0.5), (" 1 ", 0.001), ("2000", 2.0), ("999999999999", 2.0)]
)
async def test_a_client_may_shorten_the_time_and_not_lengthen_it(header: str | None, seconds: float) -> None:
    assert deadline(header) == Deadline(seconds)


@pytest.mark.parametrize("header", ["", "0", "-5", "1.5", "soon", "1e3", "9" * 400, "\u00b2"])
async def test_a_time_that_is_no_positive_whole_number_is_refused_by_name(header: str) -> None:
    with pytest.raises(BadParameter, match=r"X-Request-Timeout-Ms: expected a whole number of milliseconds") as caught:
        deadline(header)
    assert caught.value.extra["errors"][0]["found"] == header[:40]


@pytest.mark.parametrize("path", ["/classify", "/heatmap"])
async def test_a_client_that_gives_little_time_is_told_when_it_is_over(
    start: Start, engine: FakeEngine, path: str
) -> None:
    app = await start()
    engine.hold()
    answer = await app.client.post(path, content=picture(), headers={"X-Request-Timeout-Ms": "20"})
    assert "within 0.02 s" in problem(answer, 504, "deadline")["detail"]
    assert app.service.batcher.counts == Counts(admitted=1, expired=1)


async def test_a_bad_time_is_refused_before_the_body_is_read(start: Start) -> None:
    app = await start()
    request = RawRequest(app.app, "/classify", {"X-Request-Timeout-Ms": "soon"})
    refused = problem(await request.answer(), 422, "bad_parameter")
    assert [fault["parameter"] for fault in refused["errors"]] == ["X-Request-Timeout-Ms"]


async def test_enough_time_changes_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.post("/classify", content=picture(), headers={"X-Request-Timeout-Ms": "20000"})
    assert answer.status_code == 200
