"""POST /classify/batch: many files, one answer or one problem for each, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import recognition
from service.api.schemas import BatchClassification
from service.batching.batcher import Counts
from service.errors import BadForm
from service.http import forms
from service.settings import MIB
from tests.service.conftest import DEADLINE_S, Running, entered, until
from tests.support.doubles import POISON, FakeEngine, picture
from tests.support.wire import json_of, png_header, problem

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]


def form(*files: bytes) -> list[tuple[str, Any]]:
    return [("file", (f"{index}.png", data)) for index, data in enumerate(files)]


async def send(client: httpx.AsyncClient, *files: bytes, query: str = "") -> httpx.Response:
    return await client.post(f"/classify/batch{query}", files=form(*files))


def best(answer: httpx.Response) -> list[int | str]:
    """The most probable class of every file, or the kind of its problem."""
    assert answer.status_code == 200, answer.text
    found = BatchClassification.model_validate(json_of(answer.text))
    return [
        result.predictions[0]["class_id"] if result.predictions else str(result.problem and result.problem.type)
        for result in found.results
    ]


async def test_every_file_gets_its_own_label_in_the_order_of_the_form(client: httpx.AsyncClient) -> None:
    values = [9, 3, 77, 3, 50]
    answer = await send(client, *(picture(value) for value in values), query="?top_k=2")
    assert best(answer) == values
    results = answer.json()["results"]
    assert [result["filename"] for result in results] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert [len(result["predictions"]) for result in results] == [2] * 5
    assert answer.json()["model"] == {"name": "double", "digest": "0" * 64}
    assert set(answer.json()["timings_ms"]) >= {"read", "decode", "queue", "engine"}


async def test_small_files_of_one_form_reach_the_engine_together(
    start: Start, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognition, "HAND_OVER_S", DEADLINE_S)
    app = await start(decode_threads=2)
    values = [9, 3, 77, 3, 50, 6, 1, 2]
    assert best(await send(app.client, *(picture(value) for value in values))) == values
    assert engine.batches == [values]


async def test_a_picture_that_waits_for_its_memory_does_not_hold_back_the_one_before_it(
    start: Start, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognition, "HAND_OVER_S", 0.0)
    app = await start(max_decoding_bytes=MIB, decode_threads=1)
    with app.service.budget.hold(1):
        sending = asyncio.create_task(send(app.client, picture(1), picture(2, (300, 300))))
        await until(lambda: engine.batches == [[1]])
        assert not sending.done()
    assert best(await sending) == [1, 2]


@pytest.mark.parametrize(
    ("pictures", "total_bytes", "threads", "expected"),
    [
        (1, 10 * MIB, 4, 1),
        (64, 150_000, 4, 1),
        (64, recognition.SHARE_BYTES, 4, 2),
        (64, 10 * MIB, 4, 4),
        (3, MIB, 8, 3),
    ],
)
def test_another_thread_helps_for_every_share_of_bytes(
    pictures: int, total_bytes: int, threads: int, expected: int
) -> None:
    assert recognition.decoding_threads(pictures, total_bytes, threads) == expected


async def test_a_bad_file_has_a_problem_in_its_place_and_the_others_their_labels(start: Start) -> None:
    app = await start(max_upload_bytes=2000)
    files = [picture(7), b"", b"text", picture(8, (64, 64), "JPEG")[:-200], png_header(20_000, 20_000)]
    answer = await send(app.client, *files, bytes(2001), picture(POISON), picture(9))
    urn = "urn:freqmerge:problem:"
    expected = ["empty_body", "unsupported_format", "undecodable", "too_large", "too_large", "engine_failed"]
    assert best(answer) == [7, *(urn + reason for reason in expected), 9]
    problems = [result["problem"] for result in answer.json()["results"] if result["problem"]]
    assert [told["status"] for told in problems] == [422, 415, 422, 413, 413, 500]
    assert {told["instance"] for told in problems} == {"/classify/batch"}
    assert {told["request_id"] for told in problems} == {answer.headers["x-request-id"]}
    assert app.service.batcher.counts == Counts(admitted=8, answered=2, failed=6)
    sample = app.service.metrics.registry.get_sample_value
    assert sample("freqmerge_rejected_total", {"reason": "too_large"}) == 2
    assert sample("freqmerge_images_total", {"outcome": "answered"}) == 2


async def test_the_heatmap_of_every_file_can_be_asked_for(client: httpx.AsyncClient) -> None:
    results = (await send(client, picture(7), b"text", picture(9))).json()["results"]
    assert (results[1]["image_id"], results[1]["heatmap_url"]) == (None, None)
    assert results[0]["image_id"] != results[2]["image_id"]
    for result in (results[0], results[2]):
        url = urljoin("http://test/prefix/classify/batch", result["heatmap_url"])
        assert url == f"http://test/prefix/heatmap?image_id={result['image_id']}"
        drawn = await client.get(url.removeprefix("http://test/prefix"))
        assert (drawn.status_code, drawn.headers["content-type"]) == (200, "image/png")


async def test_all_files_run_in_as_few_batches_as_the_engine_allows(start: Start, engine: FakeEngine) -> None:
    app = await start(max_batch_size=8)
    engine.hold()
    blocking = asyncio.create_task(app.client.post("/classify", content=picture(1)))
    await entered(engine)
    many = asyncio.create_task(send(app.client, *(picture(value) for value in range(10, 26))))
    await until(lambda: len(app.service.batcher._queue._waiting) == 16)
    engine.release()
    assert (await blocking).status_code == 200
    assert best(await many) == list(range(10, 26))
    assert [len(batch) for batch in engine.batches] == [1, 8, 8]


async def test_sixty_four_files_are_taken_and_one_more_is_refused(start: Start, engine: FakeEngine) -> None:
    app = await start()
    data = picture(7)
    assert best(await send(app.client, *[data] * 64)) == [7] * 64
    refused = problem(await send(app.client, *[data] * 65), 422, "bad_form")
    assert "expected 1 to 64 form fields named 'file', found 65" in refused["detail"]
    assert app.service.batcher.counts.admitted == 64


@pytest.mark.parametrize(
    ("files", "found"), [(5, "found 5;"), (37, "found a form of 37 fields;"), (900, "a form of 900 fields;")]
)
async def test_too_many_files_are_told_which_limit_they_break_how_many_they_are_and_what_to_do(
    start: Start, files: int, found: str
) -> None:
    app = await start(max_batch_files=4)
    refused = problem(await send(app.client, *[b"x"] * files), 422, "bad_form")
    assert refused["detail"].startswith("expected 1 to 4 form fields named 'file', found ")
    assert found in refused["detail"]
    assert refused["detail"].endswith(
        "max_batch_files limits the files of one request (limits of GET /model): send at most 4 in each"
    )
    assert (await app.client.get("/model")).json()["limits"]["max_batch_files"] == 4


async def test_a_form_of_a_million_tiny_files_is_refused_without_parsing_it() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n'
    before = time.process_time()
    with pytest.raises(BadForm, match="found a form of 900,000 fields"):
        forms.several_files(part * 900_000 + b"--b--\r\n", b"b", 64)
    assert time.process_time() - before < 2


async def test_a_form_without_a_file_is_refused_with_the_names_that_it_has(client: httpx.AsyncClient) -> None:
    answer = await client.post("/classify/batch", files=[("files", ("a.png", picture(7)))])
    assert "found 0 (fields: 'files')" in problem(answer, 422, "bad_form")["detail"]


async def test_a_body_that_is_no_form_is_refused_and_told_where_to_go(client: httpx.AsyncClient) -> None:
    answer = await client.post("/classify/batch", content=picture(7), headers={"Content-Type": "image/png"})
    assert "send a single picture to /classify" in problem(answer, 415, "unsupported_format")["detail"]


async def test_the_request_as_a_whole_has_a_limit_of_bytes(start: Start) -> None:
    app = await start(max_batch_upload_bytes=100_000)
    filler = picture(7) + bytes(30_000)
    assert best(await send(app.client, *[filler] * 3)) == [7, 7, 7]
    refused = problem(await send(app.client, *[filler] * 6), 413, "too_large")
    assert "at most 100,000 bytes" in refused["detail"]


async def test_a_queue_without_room_for_every_file_takes_none(start: Start, engine: FakeEngine) -> None:
    app = await start(max_queue_size=4)
    engine.hold()
    running = asyncio.create_task(app.client.post("/classify", content=picture(1)))
    await entered(engine)
    waiting = asyncio.create_task(app.client.post("/classify", content=picture(2)))
    await until(lambda: app.service.batcher.queued == 1)
    answer = await send(app.client, *[picture(3)] * 4)
    problem(answer, 429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    engine.release()
    assert [(await task).status_code for task in (running, waiting)] == [200, 200]
    assert app.service.batcher.counts == Counts(admitted=2, answered=2)


async def test_more_files_than_the_queue_could_ever_hold_are_not_told_to_come_back(start: Start) -> None:
    app = await start(max_queue_size=4)
    assert (
        "expected 1 to 4 form fields" in problem(await send(app.client, *[picture(3)] * 5), 422, "bad_form")["detail"]
    )


async def test_files_that_take_too_long_have_a_problem_each(start: Start, engine: FakeEngine) -> None:
    app = await start(request_timeout_s=0.05)
    engine.hold()
    answer = await send(app.client, picture(7), b"text")
    assert best(answer) == ["urn:freqmerge:problem:deadline", "urn:freqmerge:problem:unsupported_format"]
    assert app.service.batcher.counts == Counts(admitted=2, failed=1, expired=1)


async def test_a_service_that_is_about_to_end_takes_no_batch(start: Start) -> None:
    app = await start()
    app.service.refuse_new()
    problem(await send(app.client, picture(7)), 503, "draining")


# --- forms ---

HEADER_BITS = [
    "filename",
    "name",
    "*",
    "0",
    "=",
    '"',
    ";",
    " ",
    "''",
    "utf-8",
    "%ff",
    "\\",
    "a",
    "\r\n ",
    "=?utf-8?q?=ff?=",
]


@given(st.lists(st.sampled_from(HEADER_BITS), max_size=14))
def test_whatever_a_part_is_called_its_names_can_be_told_in_json_or_the_form_is_refused(bits: list[str]) -> None:
    head = f'Content-Disposition: form-data; name="file"; {"".join(bits)}'
    try:
        parts = forms.parse(f"--b\r\n{head}\r\n\r\nx\r\n--b--\r\n".encode(), b"b")
    except BadForm:
        return
    assert all(len(name) <= 255 and name.encode("utf-8") for part in parts if (name := part.filename))
    assert len(parts) == 1


def test_half_a_character_in_a_file_name_is_replaced() -> None:
    head = b"Content-Disposition: form-data; name=\"file\"; filename*=utf-8''%ffa.png"
    [part] = forms.parse(b"--b\r\n" + head + b"\r\n\r\nx\r\n--b--\r\n", b"b")
    assert part.filename == "\ufffda.png"


def test_a_form_of_endless_small_parts_is_given_up_early() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    with pytest.raises(BadForm, match="at most 33 fields"):
        forms.single_file(part * 10_000 + b"--b--\r\n", b"b")


@pytest.mark.parametrize("preamble", [b"", b"\r\n", b"This is a form.\r\n", b"--\r\n\r\n"])
@pytest.mark.parametrize("epilogue", [b"", b"and this is its end\r\n"])
def test_what_stands_before_and_after_the_parts_of_a_form_is_no_part_of_it(preamble: bytes, epilogue: bytes) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'
    assert forms.single_file(preamble + part + epilogue, b"b") == b"x"
