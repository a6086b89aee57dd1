"""From start to end of an app: alive at once, ready when warm, honest about trouble, drained at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import httpx
import psutil
import pytest

from model.errors import EngineError
from service.errors import StartupError
from service.runtime.served import ServedModel
from service.settings import Settings
from tests.service.conftest import Running, entered, running, until
from tests.support.doubles import FakeEngine, loader, picture, served
from tests.support.wire import RawRequest, problem

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
JPEG = {"Content-Type": "image/jpeg"}


async def classify(client: httpx.AsyncClient, value: int = 7) -> httpx.Response:
    return await client.post("/classify", content=picture(value), headers=JPEG)


async def test_while_the_model_loads_the_service_is_alive_and_not_ready(engine: FakeEngine) -> None:
    go = threading.Event()

    def slow(settings: Settings) -> ServedModel:
        go.wait(20)
        return served(engine)

    async with running(slow, wait=False) as app:
        assert (await app.client.get("/live")).json() == {"status": "alive"}
        for path in ("/ready", "/model", "/labels", "/heatmap?image_id=x"):
            answer = await app.client.get(path)
            assert "still loads" in problem(answer, 503, "not_ready")["detail"]
            assert int(answer.headers["retry-after"]) >= 1
        problem(await classify(app.client), 503, "not_ready")
        assert "freqmerge_ready 0.0" in (await app.client.get("/metrics")).text
        go.set()
        await until(lambda: app.service.ready)
        assert (await app.client.get("/ready")).json() == {"status": "ready"}
        assert engine.warm, "ready means warm"
        assert (await classify(app.client)).status_code == 200


async def test_a_model_that_cannot_be_loaded_is_a_failure_that_the_host_can_see() -> None:
    def broken(settings: Settings) -> ServedModel:
        raise StartupError("the model cannot be loaded: no such file")

    async with running(broken, wait=False) as app:
        await until(lambda: app.service.failure is not None)
        assert str(app.service.failure) == "the model cannot be loaded: no such file"
        assert (await app.client.get("/live")).status_code == 200
        problem(await app.client.get("/ready"), 503, "not_ready")
        problem(await classify(app.client), 503, "not_ready")


async def test_an_engine_that_cannot_run_its_first_batch_is_a_failure() -> None:
    class Stillborn(FakeEngine):
        def warm_up(self) -> None:
            raise RuntimeError("no kernel image")

    async with running(loader(Stillborn()), wait=False) as app:
        await until(lambda: app.service.failure is not None)
        assert "cannot run its first batch: no kernel image" in str(app.service.failure)


async def test_the_death_of_the_engine_thread_makes_the_service_not_ready_and_answers_who_waits(
    start: Start, engine: FakeEngine
) -> None:
    def die(values: list[int]) -> None:
        raise SystemExit("killed")

    app = await start()
    engine.fault = die
    problem(await classify(app.client), 503, "not_ready")
    await until(lambda: app.service.failure is not None)
    assert "died" in problem(await app.client.get("/ready"), 503, "not_ready")["detail"]
    assert (await app.client.get("/live")).status_code == 200
    assert "SystemExit" in str(app.service.failure)


async def test_an_engine_that_keeps_failing_makes_the_service_not_ready_until_a_probe_succeeds(
    start: Start, engine: FakeEngine
) -> None:
    app = await start()
    engine.failures_left = 1000
    for _ in range(3):
        problem(await classify(app.client), 500, "engine_failed")
    await until(lambda: app.service.batcher.failing)
    assert "all failed" in problem(await app.client.get("/ready"), 503, "not_ready")["detail"]
    await until(lambda: app.service._probing is not None and app.service._probing.done())
    problem(await app.client.get("/ready"), 503, "not_ready")
    engine.failures_left = 0
    await app.client.get("/ready")
    await until(lambda: app.service.ready)
    assert (await app.client.get("/ready")).status_code == 200


async def test_a_batch_that_does_not_end_makes_the_service_not_ready(start: Start, engine: FakeEngine) -> None:
    app = await start(stall_after_s=0.001)
    engine.hold()
    request = asyncio.create_task(classify(app.client))
    await entered(engine)
    await until(lambda: app.service.batcher.running_s > 0.001)
    assert "one batch running" in problem(await app.client.get("/ready"), 503, "not_ready")["detail"]
    engine.release()
    assert (await request).status_code == 200
    await until(lambda: app.service.batcher.running_s == 0)
    assert (await app.client.get("/ready")).status_code == 200


async def test_an_announced_shutdown_is_not_ready_but_still_serves_and_then_refuses(start: Start) -> None:
    app = await start()
    app.service.announce_shutdown()
    problem(await app.client.get("/ready"), 503, "draining")
    assert (await classify(app.client)).status_code == 200
    app.service.refuse_new()
    problem(await classify(app.client), 503, "draining")
    assert (await app.client.get("/live")).status_code == 200


async def test_closing_answers_what_is_under_way(start: Start, engine: FakeEngine) -> None:
    app = await start()
    engine.hold()
    request = asyncio.create_task(classify(app.client))
    await entered(engine)
    closing = asyncio.create_task(app.service.close())
    await until(lambda: app.service.batcher._refusing)
    engine.release()
    assert (await request).status_code == 200
    await closing
    assert not app.service.engine._thread.is_alive()


async def test_a_request_that_the_server_gives_up_at_shutdown_is_told_so(start: Start, engine: FakeEngine) -> None:
    app = await start()
    engine.hold()
    request = RawRequest(app.app, "/classify", JPEG)
    request.body(picture(7))
    await entered(engine)
    request.task.cancel()
    problem(await request.answer(), 503, "draining")


async def test_two_apps_in_one_process_share_nothing(engine: FakeEngine) -> None:
    async with running(loader(engine)) as one, running(loader(FakeEngine())) as other:
        await classify(one.client)
        assert one.service.batcher.counts.answered == 1
        assert other.service.batcher.counts.answered == 0
        count = 'freqmerge_images_total{outcome="answered"} 0.0'
        assert count in (await other.client.get("/metrics")).text


async def test_a_cuda_error_that_sticks_ends_the_service_so_that_its_host_starts_it_anew(
    start: Start, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sticks(place: object) -> None:
        raise EngineError("the device cuda:0 does not compute any more")

    monkeypatch.setattr("model.engines.device.probe", sticks)
    monkeypatch.setattr("model.engines.device.pick_device", lambda name: name)
    app = await start()
    engine.device = "cuda:0"
    engine.failures_left = 1000
    for _ in range(3):
        problem(await classify(app.client), 500, "engine_failed")
    await until(lambda: app.service.batcher.failing)
    problem(await app.client.get("/ready"), 503, "not_ready")
    await until(lambda: app.service.failure is not None)
    assert str(app.service.failure) == "the device cuda:0 does not compute any more"


async def test_a_stall_that_lasts_ends_the_service(
    start: Start, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.service.STALL_ENDS_AFTER_S", 0.0)
    app = await start(stall_after_s=0.001)
    engine.hold()
    waiting = asyncio.create_task(classify(app.client))
    await until(lambda: app.service.failure is not None)
    assert str(app.service.failure).startswith("the engine hangs: one batch has been running for")
    problem(await waiting, 503, "not_ready")
    engine.release()


async def test_what_loading_the_model_has_freed_goes_back_to_the_system() -> None:
    resident = psutil.Process().memory_info
    before, after_loading = resident().rss, []

    def wasteful(settings: Settings) -> ServedModel:
        blocks = [bytes(2000) for _ in range(100_000)]
        kept.append(bytes(2000))  # above them all: the heap cannot shrink from its end
        after_loading.append(resident().rss)
        del blocks
        return served(FakeEngine())

    kept: list[bytes] = []
    async with running(wasteful):
        assert after_loading[0] - before > 150 << 20
        assert resident().rss - before < 100 << 20
