"""Several pictures of one request: one end for each, in order, and none of them in another's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import Request

from service.api.recognition import QUICK_BYTES, Recognised, recognise_many, run_pixels
from service.batching.batcher import Counts
from service.batching.waiting import Answer
from service.errors import DeadlineExceeded, EngineFailed, RequestError, TooLarge, Undecodable, UnsupportedFormat
from service.http.body import Upload
from service.http.deadline import Deadline
from service.pictures import jobs
from tests.service.conftest import DEADLINE_S, Running, entered, until
from tests.support.doubles import POISON, FakeEngine, picture, pixels
from tests.support.wire import RawRequest, png_header, problem

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
Work = Callable[[Request], Awaitable[None]]
ENOUGH = Deadline(DEADLINE_S)


async def play(app: Running, work: Work) -> RawRequest:
    """A request whose body has arrived and whose route does `work`."""

    async def route(request: Request) -> dict[str, str]:
        await request.body()
        await work(request)
        return {}

    app.app.add_api_route("/play", route, methods=["POST"])
    request = RawRequest(app.app, "/play")
    request.body(b"")
    return request


def said(end: Recognised | Answer | RequestError) -> int | type[RequestError]:
    """The class that was found, or the type of the refusal."""
    if isinstance(end, RequestError):
        return type(end)
    answer = end.answer if isinstance(end, Recognised) else end
    return int(answer.logits.argmax())


async def recognised(app: Running, files: list[bytes], deadline: Deadline = ENOUGH) -> list[object]:
    ends: list[Recognised | RequestError] = []

    async def work(request: Request) -> None:
        ends.extend(await recognise_many(app.service, request, [Upload(data) for data in files], deadline))

    answer = await (await play(app, work)).answer()
    assert answer.status_code == 200, answer.text
    assert [end.data for end in ends if isinstance(end, Recognised)] == [
        file for file, end in zip(files, ends, strict=True) if isinstance(end, Recognised)
    ]
    return [said(end) for end in ends]


async def test_every_file_gets_its_own_answer_or_its_own_refusal_in_order(start: Start) -> None:
    app = await start(max_queue_size=8)
    files = [
        picture(3),
        b"no picture",
        picture(4, (64, 64), "JPEG")[:-300],
        picture(POISON),
        png_header(20_000, 20_000),
        picture(5),
    ]
    assert await recognised(app, files) == [3, UnsupportedFormat, Undecodable, EngineFailed, TooLarge, 5]
    assert app.service.batcher.counts == Counts(admitted=6, answered=2, failed=4)


async def test_files_beyond_the_free_places_are_refused_all_together(start: Start, engine: FakeEngine) -> None:
    app = await start(max_queue_size=3)

    async def work(request: Request) -> None:
        await recognise_many(app.service, request, [Upload(picture(value)) for value in range(4)], ENOUGH)

    problem(await (await play(app, work)).answer(), 429, "queue_full")
    assert (engine.batches, app.service.batcher.counts) == ([], Counts())


async def test_files_that_are_not_done_in_time_are_told_so_and_the_others_keep_their_answers(
    start: Start, engine: FakeEngine
) -> None:
    app = await start(max_batch_size=1, decode_threads=1)

    def hold_after_the_first(values: list[int]) -> None:
        engine.hold()

    engine.fault = hold_after_the_first
    files = [picture(1), picture(2), picture(3)]
    assert await recognised(app, files, Deadline(0.3)) == [1, DeadlineExceeded, DeadlineExceeded]
    assert app.service.batcher.counts == Counts(admitted=3, answered=1, expired=2)


async def test_arrays_run_without_decoding(start: Start, engine: FakeEngine) -> None:
    app = await start()
    ends: list[Answer | RequestError] = []

    async def work(request: Request) -> None:
        ends.extend(await run_pixels(app.service, request, [pixels(6), pixels(POISON), pixels(7)], ENOUGH))

    answer = await (await play(app, work)).answer()
    assert [said(end) for end in ends] == [6, EngineFailed, 7]
    stages = [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert stages == ["queue", "copy", "engine"]


async def test_a_client_that_leaves_takes_all_its_files_with_it(start: Start, engine: FakeEngine) -> None:
    app = await start()
    engine.hold()
    first = asyncio.create_task(app.client.post("/classify", content=picture(1)))
    await entered(engine)

    async def work(request: Request) -> None:
        await recognise_many(app.service, request, [Upload(picture(2)), Upload(picture(3))], ENOUGH)

    request = await play(app, work)
    await until(lambda: len(app.service.batcher._queue._waiting) == 2)
    request.leave()
    assert (await request.answer()).status_code == 499
    engine.release()
    assert (await first).status_code == 200
    assert engine.batches == [[1]]
    assert app.service.batcher.counts == Counts(admitted=3, answered=1, cancelled=2)


async def test_a_bug_in_decoding_is_a_bug_and_not_a_refusal_of_the_picture(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await start()

    def broken(*args: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(jobs, "decode_file", broken)
    answer = await app.client.post("/classify", content=picture())
    problem(answer, 500, "internal")
    assert "LookupError" not in answer.text
    assert app.service.batcher.counts == Counts(admitted=1, failed=1)


@pytest.mark.parametrize(
    ("files", "on_the_loop"),
    [
        pytest.param([picture(1)], True, id="small"),
        pytest.param([picture(1), picture(2)], False, id="two small ones"),
        pytest.param([picture(1, size=(200, 200))], False, id="few bytes that take longer"),
        pytest.param([picture(1) + bytes(QUICK_BYTES)], False, id="small with much behind it"),
    ],
)
async def test_one_picture_that_costs_next_to_nothing_is_decoded_without_a_thread(
    start: Start, monkeypatch: pytest.MonkeyPatch, files: list[bytes], on_the_loop: bool
) -> None:
    decode_file, threads = jobs.decode_file, set[threading.Thread]()

    def watched(*args: Any, **how: Any) -> jobs.Decoded:
        decoded = decode_file(*args, **how)
        threads.add(threading.current_thread())
        return decoded

    monkeypatch.setattr(jobs, "decode_file", watched)
    app = await start()
    assert await recognised(app, files) == [1, 2][: len(files)]
    assert (threads == {threading.current_thread()}) == on_the_loop
    assert app.service.batcher.counts == Counts(admitted=len(files), answered=len(files))


async def test_a_small_picture_that_does_not_decode_is_refused_from_the_loop(start: Start) -> None:
    app = await start()
    assert await recognised(app, [picture(1)[:40]]) == [Undecodable]
    assert app.service.batcher.counts == Counts(admitted=1, failed=1)
