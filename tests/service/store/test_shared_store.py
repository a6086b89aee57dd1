"""Several services with one Redis between them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from service.runtime.served import ServedModel
from service.settings import Settings
from tests.service.conftest import Running, running
from tests.support.doubles import FakeEngine, loader, picture, served
from tests.support.redis_server import PASSWORD, RedisServer, redis_server
from tests.support.wire import problem

pytestmark = pytest.mark.anyio

Start = Callable[..., Awaitable[Running]]
NOWHERE = f"redis://:{PASSWORD}@127.0.0.1:1/0"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as found:
        yield found


async def heatmap_url(app: Running) -> str:
    answer = await app.client.post("/classify", content=picture(90, (64, 48)))
    assert answer.status_code == 200
    return str(answer.json()["heatmap_url"])


def failures(app: Running, operation: str) -> float | None:
    labels = {"operation": operation}
    return app.service.metrics.registry.get_sample_value("freqmerge_store_failures_total", labels)


async def test_a_picture_classified_on_one_replica_is_drawn_by_another_as_by_the_first(
    start: Start, server: RedisServer
) -> None:
    one, other, alone = [await start(store_url=url, store_timeout_s=5) for url in (server.url, server.url, None)]
    url = await heatmap_url(one)
    there = await other.client.get(url)
    assert there.status_code == 200
    assert there.content == (await one.client.get(url)).content
    assert there.content == (await alone.client.get(await heatmap_url(alone))).content
    numbers = f"{url}&format=json"
    assert (await other.client.get(numbers)).json() == (await one.client.get(numbers)).json()
    problem(await alone.client.get(url), 404, "unknown_image")


async def test_a_picture_outlives_the_replica_that_classified_it(server: RedisServer, start: Start) -> None:
    async with running(loader(FakeEngine()), store_url=server.url, store_timeout_s=5) as gone:
        url = await heatmap_url(gone)
    assert (await (await start(store_url=server.url, store_timeout_s=5)).client.get(url)).status_code == 200


async def test_every_file_of_a_batch_is_found_from_another_replica(start: Start, server: RedisServer) -> None:
    one, other = [await start(store_url=server.url, store_timeout_s=5) for _ in range(2)]
    files = [("file", picture(1)), ("file", b"no picture"), ("file", picture(2))]
    results = (await one.client.post("/classify/batch", files=files)).json()["results"]
    assert [result["image_id"] is None for result in results] == [False, True, False]
    for value, result in ((1, results[0]), (2, results[2])):
        assert result["predictions"][0]["class_id"] == value
        query = f"/heatmap?image_id={result['image_id']}&view=original"
        assert (await other.client.get(query)).content == (await one.client.get(query)).content


@pytest.mark.parametrize("change", ["digest", "schedule"])
async def test_a_replica_with_another_model_does_not_draw_the_picture(
    start: Start, server: RedisServer, change: str
) -> None:
    def load(settings: Settings) -> ServedModel:
        model = served(FakeEngine())
        if change == "schedule":
            return dataclasses.replace(model, schedule=(6, 5, 5, 3))
        return dataclasses.replace(model, manifest=model.manifest.model_copy(update={"digest": "1" * 64}))

    url = await heatmap_url(await start(store_url=server.url, store_timeout_s=5))
    async with running(load, store_url=server.url, store_timeout_s=5) as other:
        problem(await other.client.get(url), 404, "unknown_image")


async def test_without_its_redis_a_service_is_ready_classifies_and_says_what_it_cannot(start: Start) -> None:
    app = await start(store_url=NOWHERE)
    assert (await app.client.get("/ready")).status_code == 200
    answer = (await app.client.post("/classify", content=picture(7))).json()
    assert answer["predictions"][0]["class_id"] == 7
    assert (answer["image_id"], answer["heatmap_url"]) == (None, None)
    batch = await app.client.post("/classify/batch", files=[("file", picture(value)) for value in (1, 2, 3)])
    assert [result["image_id"] for result in batch.json()["results"]] == [None] * 3
    refused = await app.client.get(f"/heatmap?image_id={'x' * 22}")
    problem(refused, 503, "store_unreachable")
    assert refused.headers["retry-after"] == "1"
    assert (await app.client.post("/heatmap", content=picture(7))).status_code == 200
    assert (failures(app, "put"), failures(app, "get")) == (4, 1)


async def test_a_redis_that_hangs_and_comes_back_costs_no_answer(start: Start) -> None:
    with redis_server() as slow:
        app = await start(store_url=slow.url, store_timeout_s=0.1)
        url = await heatmap_url(app)
        slow.hang()
        began = time.perf_counter()
        for _ in range(10):
            assert await heatmap_url(app) == "None"
        assert time.perf_counter() - began < 1.5, "three timeouts, then none"
        problem(await app.client.get(url), 503, "store_unreachable")
        slow.go_on()
        app.service.store._breaker.succeeded()  # type: ignore[attr-defined] # instead of a pause
        assert (await app.client.get(url)).status_code == 200
        assert (await app.client.get(await heatmap_url(app))).status_code == 200


async def test_the_wait_for_redis_is_a_stage_and_its_contents_are_no_gauge_of_ours(
    start: Start, server: RedisServer
) -> None:
    app = await start(store_url=server.url, store_timeout_s=5)
    answer = await app.client.post("/classify", content=picture(7))
    assert list(answer.json()["timings_ms"])[-1] == "store"
    assert (await app.client.get(answer.json()["heatmap_url"])).headers["server-timing"].startswith("store;dur=")
    sample = app.service.metrics.registry.get_sample_value
    assert sample("freqmerge_stored_images") is sample("freqmerge_stored_bytes") is None
    assert (failures(app, "put"), failures(app, "get")) == (0, 0)


async def test_the_address_of_the_store_shows_nowhere(start: Start) -> None:
    app = await start(store_url=NOWHERE)
    shown = [str(app.service.settings), repr(app.service.settings)]
    paths = ("/model", "/metrics", "/ready", "/openapi.json", f"/heatmap?image_id={'x' * 22}")
    shown += [(await app.client.get(path)).text for path in paths]
    assert not [text for text in shown if PASSWORD in text or "127.0.0.1:1" in text]
