"""What a client can do wrong: exact status, a problem document that helps, and nothing of our insides."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from service.batching.batcher import Counts
from service.errors import documented
from service.settings import MIB
from tests.service.conftest import Running, entered, until
from tests.support.doubles import POISON, FakeEngine, picture
from tests.support.wire import RawRequest, png_header, problem

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
JPEG = {"Content-Type": "image/jpeg"}
TRUNCATED = picture(7, (64, 64), "JPEG")[:-200]


@pytest.mark.parametrize("path", ["/classify", "/heatmap"])
@pytest.mark.parametrize(
    ("body", "status", "reason", "found"),
    [
        (b"", 422, "empty_body", "found none"),
        (b"this is no picture", 415, "unsupported_format", "found text"),
        (TRUNCATED, 422, "undecodable", "truncated or damaged"),
        (png_header(20_000, 20_000), 413, "too_large", "20000 x 20000"),
        (b"BM" + bytes(100), 415, "unsupported_format", "BMP"),
    ],
    ids=["empty body", "text", "truncated JPEG", "20,000 x 20,000 PNG", "BMP"],
)
async def test_a_body_that_is_no_picture_is_refused(
    client: httpx.AsyncClient, path: str, body: bytes, status: int, reason: str, found: str
) -> None:
    answer = await client.post(path, content=body, headers=JPEG)
    refused = problem(answer, status, reason)
    assert found in refused["detail"]
    assert refused["instance"] == path


async def test_fifty_megabytes_announced_are_refused_before_a_byte_is_read(start: Start) -> None:
    app = await start()
    request = RawRequest(app.app, "/classify", JPEG | {"Content-Length": str(50 << 20)})
    refused = problem(await request.answer(), 413, "too_large")
    assert "52,428,800 announced" in refused["detail"]
    assert "at most 10,485,760 bytes" in refused["detail"]


async def test_fifty_megabytes_in_chunks_are_refused_as_soon_as_they_are_too_many(
    client: httpx.AsyncClient,
) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(50):
            taken += 1 << 20
            yield bytes(1 << 20)

    answer = await client.post("/classify", content=endless(), headers=JPEG)
    problem(answer, 413, "too_large")
    assert taken == 11 << 20


async def test_a_form_around_a_picture_of_the_largest_size_is_taken_and_one_byte_more_is_not(
    start: Start,
) -> None:
    app = await start(max_upload_bytes=2048)
    fits, spills = (picture(7) + bytes(2048 + more - len(picture(7))) for more in (0, 1))
    assert (await app.client.post("/classify", files={"file": fits})).status_code == 200
    refused = problem(await app.client.post("/classify", files={"file": spills}), 413, "too_large")
    assert "found 2,049" in refused["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            b'--b\r\nContent-Disposition: form-data; name="photo"\r\n\r\nx\r\n--b--\r\n',
            "found 0 (fields: 'photo')",
        ),
        (2 * b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n' + b"--b--\r\n", "found 2"),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx', "without its final boundary"),
        (b"no form at all", "does not parse"),
        (b"", "without its final boundary"),
    ],
    ids=["other field", "two files", "cut off", "no form", "empty"],
)
async def test_a_form_without_exactly_one_file_is_refused(client: httpx.AsyncClient, body: bytes, words: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused = problem(await client.post("/classify", content=body, headers=headers), 422, "bad_form")
    assert words in refused["detail"]


async def test_an_empty_file_in_a_form_is_an_empty_body(client: httpx.AsyncClient) -> None:
    problem(await client.post("/classify", files={"file": ("a.png", b"")}), 422, "empty_body")


@pytest.mark.parametrize(
    "declared", ["text/plain", "application/json", "multipart/form-data", "multipart/mixed; boundary=b"]
)
async def test_a_declared_type_that_cannot_hold_a_picture_is_refused(client: httpx.AsyncClient, declared: str) -> None:
    answer = await client.post("/classify", content=picture(7), headers={"Content-Type": declared})
    assert declared in problem(answer, 415, "unsupported_format")["detail"]


@pytest.mark.parametrize("path", ["/classify", "/classify/batch", "/heatmap"])
async def test_a_compressed_body_is_refused_with_what_to_do(client: httpx.AsyncClient, path: str) -> None:
    form = {"files": {"file": gzip.compress(picture(7))}, "headers": {"Content-Encoding": "gzip"}}
    refused = problem(await client.post(path, **form), 415, "unsupported_format")
    assert refused["detail"] == "expected a body without Content-Encoding, found 'gzip'; send it as it is"


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_a_body_that_is_declared_to_be_uncompressed_is_taken(client: httpx.AsyncClient, encoding: str) -> None:
    answer = await client.post("/classify", content=picture(7), headers=JPEG | {"Content-Encoding": encoding})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("query", "parameter", "words"),
    [
        ("top_k=0", "top_k", "expected 1 or more, found '0'"),
        ("top_k=101", "top_k", "expected 100 or less, found '101'"),
        ("top_k=many", "top_k", "expected a whole number, found"),
        ("top_k=", "top_k", "expected a whole number, found"),
    ],
)
async def test_a_parameter_out_of_range_is_named_with_what_was_found(
    client: httpx.AsyncClient, query: str, parameter: str, words: str
) -> None:
    refused = problem(await client.post(f"/classify?{query}", content=picture(7), headers=JPEG), 422, "bad_parameter")
    assert words in refused["detail"]
    assert [fault["parameter"] for fault in refused["errors"]] == [parameter]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("", "image_id"),
        ("image_id=", "image_id"),
        ("image_id=x&view=x-ray", "view"),
        ("image_id=x&colormap=pink", "colormap"),
        ("image_id=x&opacity=1.5", "opacity"),
        ("image_id=x&size=0", "size"),
        ("image_id=x&format=tiff", "format"),
    ],
)
async def test_a_bad_heatmap_parameter_is_named(client: httpx.AsyncClient, query: str, parameter: str) -> None:
    refused = problem(await client.get(f"/heatmap?{query}"), 422, "bad_parameter")
    assert [fault["parameter"] for fault in refused["errors"]] == [parameter]


async def test_a_heatmap_larger_than_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    refused = problem(await client.post("/heatmap?size=2049", content=picture(7), headers=JPEG), 422, "bad_parameter")
    assert "at most 2048 pixels, found 2049" in refused["detail"]
    assert refused["errors"] == [{"parameter": "size", "expected": "at most 2048 pixels", "found": "2049"}]


async def test_a_parameter_that_is_missing_is_told_as_found_nothing(client: httpx.AsyncClient) -> None:
    refused = problem(await client.get("/heatmap"), 422, "bad_parameter")
    assert refused["detail"].startswith("image_id: expected a value, found nothing; ")
    assert refused["errors"] == [{"parameter": "image_id", "expected": "a value", "found": None}]


async def test_an_unknown_image_id_is_not_found(client: httpx.AsyncClient) -> None:
    refused = problem(await client.get("/heatmap?image_id=nobody"), 404, "unknown_image")
    assert "'nobody'" in refused["detail"]


@pytest.mark.parametrize("path", ["/clasify", "/classify/", "/static/../etc/passwd"])
async def test_an_unknown_route_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    problem(await client.get(path), 404, "route_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/classify", "POST"),
        ("DELETE", "/heatmap", "GET, HEAD, POST"),
        ("POST", "/metrics", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_every_right_one(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await client.request(method, path)
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


async def test_a_body_that_does_not_come_is_given_up(start: Start) -> None:
    app = await start(body_timeout_s=0.02)
    request = RawRequest(app.app, "/classify", JPEG)
    request.body(picture(7)[:20], more=True)
    answer = await request.answer()
    assert "within 0.02 s" in problem(answer, 408, "slow_body")["detail"]
    assert answer.headers["connection"] == "close"
    assert app.service.batcher.counts == Counts()


async def test_bodies_of_all_requests_share_one_bound_until_their_answers(start: Start, engine: FakeEngine) -> None:
    whole = picture(1)
    app = await start(max_upload_bytes=MIB, max_batch_upload_bytes=MIB, max_body_bytes=2 * MIB)
    slow = [RawRequest(app.app, "/classify", JPEG) for _ in range(2)]
    for request in slow:
        request.body(bytes(MIB - len(whole) // 4), more=True)
    senders = [asyncio.create_task(request.answer()) for request in slow]
    await until(lambda: app.service.bodies.held > 2 * MIB - len(whole))
    refused = await app.client.post("/classify", content=whole, headers=JPEG)
    assert "2,097,152 bytes that all bodies may take" in problem(refused, 429, "queue_full")["detail"]
    assert int(refused.headers["retry-after"]) >= 1
    for request in slow:
        request.body(b"", more=False)
    for answer in await asyncio.gather(*senders):
        problem(answer, 415, "unsupported_format")
    assert app.service.bodies.held == 0
    assert (await app.client.post("/classify", content=whole, headers=JPEG)).status_code == 200


async def test_a_full_queue_refuses_before_it_reads_the_body(start: Start, engine: FakeEngine) -> None:
    app = await start(max_queue_size=1)
    engine.hold()
    running = asyncio.create_task(app.client.post("/classify", content=picture(1), headers=JPEG))
    await entered(engine)
    waiting = asyncio.create_task(app.client.post("/classify", content=picture(2), headers=JPEG))
    await until(lambda: app.service.batcher.queued == 1)
    answer = await RawRequest(app.app, "/classify", JPEG).answer()
    problem(answer, 429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    engine.release()
    assert [(await task).status_code for task in (running, waiting)] == [200, 200]


async def test_an_answer_that_takes_too_long_is_given_up(start: Start, engine: FakeEngine) -> None:
    app = await start(request_timeout_s=0.05)
    engine.hold()
    problem(await app.client.post("/classify", content=picture(7), headers=JPEG), 504, "deadline")
    assert app.service.batcher.counts == Counts(admitted=1, expired=1)


async def test_a_picture_on_which_the_model_fails_is_told_so_without_the_models_words(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/classify", content=picture(POISON), headers=JPEG)
    problem(answer, 500, "engine_failed")
    assert "poison" not in answer.text
    assert (await client.post("/classify", content=picture(7), headers=JPEG)).status_code == 200


async def test_a_bug_is_told_as_an_internal_error_and_its_traceback_is_logged(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start()
    app.service.labels = []  # a bug, as the code sees it
    answer = await app.client.post("/classify", content=picture(7), headers=JPEG | {"X-Request-ID": "bug-1"})
    problem(answer, 500, "internal")
    assert "IndexError" not in answer.text
    [record] = [record for record in caplog.records if record.message == "unexpected error"]
    assert record.exc_info is not None
    assert record.exc_info[0] is IndexError
    assert record.__dict__["fields"] == {"request_id": "bug-1", "path": "/classify"}


async def test_a_client_that_leaves_while_it_sends_is_forgotten(start: Start) -> None:
    app = await start()
    request = RawRequest(app.app, "/classify", JPEG)
    request.body(picture(7)[:20], more=True)
    request.leave()
    assert (await request.answer()).status_code == 499
    assert app.service.batcher.counts == Counts()


async def test_a_client_that_leaves_while_it_waits_is_dropped_before_its_image_runs(
    start: Start, engine: FakeEngine
) -> None:
    app = await start()
    engine.hold()
    running = asyncio.create_task(app.client.post("/classify", content=picture(1), headers=JPEG))
    await entered(engine)
    request = RawRequest(app.app, "/classify", JPEG)
    request.body(picture(2))
    await until(lambda: len(app.service.batcher._queue._waiting) == 1)
    request.leave()
    assert (await request.answer()).status_code == 499
    engine.release()
    assert (await running).status_code == 200
    assert engine.batches == [[1]]
    assert app.service.batcher.counts == Counts(admitted=2, answered=1, cancelled=1)


def test_every_kind_of_problem_has_a_type_of_its_own() -> None:
    reasons = [kind.reason for kind in documented()]
    assert len(reasons) == len(set(reasons))
    assert {kind.status for kind in documented()} == {400, 401, 404, 405, 408, 413, 415, 422, 429, 431, 500, 503, 504}
