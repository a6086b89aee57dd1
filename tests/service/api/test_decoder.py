"""The decoder as a client and an operator see it: warnings, costly pictures, saturation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from tests.service.conftest import Running, until
from tests.support.costly import many_scans, noisy_jpeg
from tests.support.doubles import picture

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]


async def test_a_file_that_is_cut_off_is_classified_with_a_warning_and_a_whole_one_without(start: Start) -> None:
    client = (await start()).client
    whole = noisy_jpeg()
    assert (await client.post("/classify", content=whole)).json()["warnings"] == []
    [warning] = (await client.post("/classify", content=whole[:-2])).json()["warnings"]
    assert warning.startswith("the file is cut off")


async def test_bytes_of_an_undeclared_binary_type_are_judged_by_themselves(start: Start) -> None:
    client = (await start()).client
    for declared in ({"Content-Type": "binary/octet-stream"}, {}):
        assert (await client.post("/classify", content=picture(), headers=declared)).status_code == 200
    refused = await client.post("/classify", content=b"text", headers={"Content-Type": "binary/octet-stream"})
    assert refused.status_code == 415


async def test_a_picture_made_to_be_slow_is_refused_with_the_reason(start: Start) -> None:
    answer = await (await start()).client.post("/classify", content=many_scans(4900, 2600))
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:freqmerge:problem:too_costly"
    assert "scans over" in answer.json()["detail"]


async def test_a_costly_picture_leaves_the_threads_to_the_others_and_is_ended_with_its_request(start: Start) -> None:
    app = await start(decode_threads=1, decode_workers=1)
    begun, release = threading.Event(), threading.Event()

    def decode(essence: object, found: str, keep_side: int, limits: object, wanted: Callable[[], bool]) -> None:
        begun.set()
        while wanted() and not release.wait(0.001):
            pass
        raise LookupError("ended")

    app.service.workers.decode = decode  # type: ignore[method-assign, assignment]
    avif = picture(7, format="AVIF")
    asked = asyncio.create_task(app.client.post("/classify", content=avif, headers={"X-Request-Timeout-Ms": "300"}))
    await until(begun.is_set)
    assert (await app.client.post("/classify", content=picture())).status_code == 200
    assert (await asked).status_code == 504
    await until(lambda: app.service.costly_pool.waited_s == 0)
    assert not release.is_set()  # it ended because nobody wanted it any more


async def test_a_decoder_that_pictures_wait_for_is_not_ready_and_ready_again_when_it_has_caught_up(
    start: Start,
) -> None:
    app = await start(decode_threads=1, decode_stall_after_s=0.01)
    release = threading.Event()
    app.service.pool.submit(lambda: release.wait(30))  # type: ignore[arg-type, return-value]
    app.service.pool.submit(lambda: None)
    await until(lambda: app.service.decode_wait_s > 0.01)
    answer = await app.client.get("/ready")
    assert answer.status_code == 503
    assert "The decoder is saturated" in answer.json()["detail"]
    release.set()
    await until(lambda: app.service.decode_wait_s == 0)
    assert (await app.client.get("/ready")).status_code == 200


async def test_pictures_that_wait_for_memory_are_counted_and_make_the_service_not_ready_until_there_is_some(
    start: Start,
) -> None:
    app = await start(decode_threads=8, decode_stall_after_s=0.01)  # threads to spare: nobody waits for one
    registry = app.service.metrics.registry
    with app.service.budget.hold(app.service.budget.limit):
        asked = [
            asyncio.create_task(app.client.post("/classify", content=picture(value, size=(200, 200))))
            for value in (1, 2)
        ]
        await until(lambda: app.service.budget.waiting == 2 and app.service.decode_wait_s > 0.01)
        assert registry.get_sample_value("freqmerge_decoding_memory_waiting_images") == 2
        answer = await app.client.get("/ready")
        assert answer.status_code == 503
        assert "The decoder is saturated" in answer.json()["detail"]
    assert [(await task).status_code for task in asked] == [200, 200]
    assert registry.get_sample_value("freqmerge_decoding_memory_waiting_images") == 0
    assert registry.get_sample_value("freqmerge_decoding_memory_wait_seconds_count") == 1 + 2, "the holder's is 0"
    assert (registry.get_sample_value("freqmerge_decoding_memory_wait_seconds_sum") or 0) > 0.02
    assert (await app.client.get("/ready")).status_code == 200
