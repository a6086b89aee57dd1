"""The store on a real Redis."""

from __future__ import annotations

import logging
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from service.errors import SettingsError, StartupError, StoreUnreachable
from service.settings import Settings
from service.store.choice import open_store
from service.store.image_store import ENTRY_OVERHEAD_BYTES, ImageStore, StoredImage, stored_image
from service.store.memory_store import MemoryStore
from service.store.redis_store import FAILURES, KEY_PREFIX, RedisStore
from tests.service.conftest import until
from tests.support.doubles import SCORES, SOURCE_MAPS
from tests.support.redis_server import PASSWORD, RedisServer, redis_server

pytestmark = pytest.mark.anyio

Opening = Callable[..., ImageStore]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def failures() -> list[tuple[str, int]]:
    return []


@pytest.fixture
async def opened(server: RedisServer, failures: list[tuple[str, int]]) -> AsyncIterator[Opening]:
    """Opens stores on the server, with these settings; all are closed after the test."""
    server.ask("FLUSHALL")
    async with AsyncExitStack() as stack:

        def begin(model: str = "model", **settings: Any) -> ImageStore:
            values = {"store_url": server.url, "store_timeout_s": 2.0} | settings
            store = open_store(Settings(**values), lambda operation, images: failures.append((operation, images)))
            store.serve(model)
            stack.push_async_callback(store.close)
            return store

        yield begin


def image(data: bytes = b"abc") -> StoredImage:
    return stored_image(data, SCORES, SOURCE_MAPS)


async def put(store: ImageStore, data: bytes = b"abc") -> str:
    [image_id] = await store.put_many([image(data)])
    assert image_id is not None
    return image_id


async def data_of(store: ImageStore, image_id: str) -> bytes | None:
    found = await store.get(image_id)
    return found.data if found else None


async def test_an_image_is_found_from_another_process_as_it_was(opened: Opening) -> None:
    here, there = opened(), opened()
    found = await there.get(await put(here, b"\x00\xff\r\n$3\r\n"))
    assert found is not None
    assert found.data == b"\x00\xff\r\n$3\r\n"
    assert found.frequency_scores.tolist() == SCORES.tolist()
    assert found.source_maps.tolist() == SOURCE_MAPS.tolist()


async def test_an_image_that_an_earlier_version_put_there_is_unknown_and_harms_no_other(
    opened: Opening, server: RedisServer
) -> None:
    store = opened()
    image_id = await put(store)
    earlier = struct.pack("<4sII", b"FQM1", *SOURCE_MAPS.shape) + SCORES[0].tobytes() + SOURCE_MAPS.tobytes() + b"abc"
    old_id = image_id[::-1]
    server.ask("SET", f"{KEY_PREFIX}model:{old_id}", earlier)
    assert await store.get(old_id) is None
    assert await data_of(store, image_id) == b"abc"


async def test_sixty_four_images_take_one_write_and_keep_their_order(opened: Opening, server: RedisServer) -> None:
    store = opened()
    ids = await store.put_many([image(bytes([number])) for number in range(64)])
    assert [await data_of(store, image_id or "") for image_id in ids] == [bytes([number]) for number in range(64)]
    assert len(set(ids)) == server.ask("DBSIZE") == 64


async def test_an_image_goes_when_its_time_is_over(opened: Opening, server: RedisServer) -> None:
    image_id = await put(opened(store_ttl_s=900.5))
    key = f"{KEY_PREFIX}model:{image_id}"
    assert 899_000 < int(server.ask("PTTL", key)) <= 900_500
    short = opened(store_ttl_s=0.05)
    gone = await put(short)
    await until(lambda: not server.ask("EXISTS", f"{KEY_PREFIX}model:{gone}"))
    assert await short.get(gone) is None


async def test_redis_drops_the_least_recently_used_image_when_its_memory_is_full(
    opened: Opening, server: RedisServer
) -> None:
    store = opened()
    used = int(server.ask("INFO", "memory")["used_memory"])
    server.ask("CONFIG", "SET", "maxmemory", str(used + 2_000_000), "maxmemory-policy", "allkeys-lru")
    try:
        ids = [await put(store, bytes(100_000)) for _ in range(60)]
        kept = [await store.get(image_id) is not None for image_id in ids]
    finally:
        server.ask("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")
    assert kept[-1]
    assert 0 < sum(kept) < 40


async def test_a_redis_that_is_full_and_drops_nothing_takes_no_image_and_gives_those_it_has(
    opened: Opening, server: RedisServer, failures: list[tuple[str, int]]
) -> None:
    store = opened()
    early = await put(store)
    server.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        assert await store.put_many([image(), image()]) == [None, None]
        assert await data_of(store, early) == b"abc"
    finally:
        server.ask("CONFIG", "SET", "maxmemory", "0")
    assert failures == [("put", 2)]


async def test_an_image_that_is_too_large_is_not_kept_and_the_others_are(opened: Opening) -> None:
    store = opened(max_upload_bytes=2000, store_max_bytes=2000)
    most = 2000 - ENTRY_OVERHEAD_BYTES - SCORES.nbytes - SOURCE_MAPS.nbytes
    first, large, last = await store.put_many([image(b"1"), image(bytes(most + 1)), image(bytes(most))])
    assert large is None
    assert await data_of(store, first or "") == b"1"
    assert await data_of(store, last or "") == bytes(most)


async def test_a_store_of_no_images_asks_no_redis(opened: Opening, server: RedisServer) -> None:
    for nothing in ({"store_max_images": 0}, {"store_max_bytes": 0}):
        store = opened(**nothing)
        assert isinstance(store, MemoryStore)
        assert await store.put_many([image()]) == [None]
    assert server.ask("DBSIZE") == 0


async def test_another_models_image_is_unknown(opened: Opening) -> None:
    image_id = await put(opened("one"))
    assert await opened("other").get(image_id) is None
    assert await data_of(opened("one"), image_id) == b"abc"


@pytest.mark.parametrize(
    "hostile",
    ["", "a", "*", "x" * 21 + "*", "x" * 23, "../" + "x" * 19, "é" * 22, "x" * 21 + "\n", "\r\nFLUSHALL\r\n" * 2],
)
async def test_an_id_that_is_none_of_ours_is_unknown_without_asking(
    opened: Opening, server: RedisServer, hostile: str
) -> None:
    store = opened()
    before = int(server.ask("INFO", "commandstats").get("cmdstat_get", {"calls": 0})["calls"])
    assert await store.get(hostile) is None
    after = int(server.ask("INFO", "commandstats").get("cmdstat_get", {"calls": 0})["calls"])
    assert after == before


async def test_a_value_of_somebody_else_is_unknown(opened: Opening, server: RedisServer) -> None:
    server.ask("SET", f"{KEY_PREFIX}model:{'x' * 22}", b"\x80\x04no pickle is opened")
    assert await opened().get("x" * 22) is None


async def test_a_redis_that_dies_fails_at_once_and_works_again_when_it_is_back(
    failures: list[tuple[str, int]], opened: Opening
) -> None:
    with redis_server() as mortal:
        store = opened(store_url=mortal.url)
        image_id = await put(store)
        mortal.kill()
        assert await store.put_many([image()]) == [None]
        with pytest.raises(StoreUnreachable, match="found it away or too slow"):
            await store.get(image_id)
        assert failures == [("put", 1), ("get", 1)]
        mortal.start()
        assert await data_of(store, await put(store, b"again")) == b"again"
        assert await store.get(image_id) is None


async def test_a_redis_that_hangs_costs_the_timeout_some_times_and_then_nothing(opened: Opening) -> None:
    with redis_server() as slow:
        store = opened(store_url=slow.url, store_timeout_s=0.1)
        first, second = await put(store, b"first"), await put(store, b"second")
        slow.hang()
        began = time.perf_counter()
        for _ in range(FAILURES):
            with pytest.raises(StoreUnreachable):
                await store.get(first)
        waited = time.perf_counter() - began
        assert 0.1 * FAILURES <= waited < 0.1 * FAILURES + 1
        began = time.perf_counter()
        assert await store.put_many([image()]) == [None]
        assert time.perf_counter() - began < 0.05
        slow.go_on()
        assert isinstance(store, RedisStore)
        store._breaker.succeeded()  # instead of a pause
        assert await data_of(store, second) == b"second", "no late answer to an earlier question"
        assert await data_of(store, first) == b"first"


async def test_a_wrong_password_keeps_nothing_and_is_never_written_down(
    opened: Opening, caplog: pytest.LogCaptureFixture, failures: list[tuple[str, int]]
) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_server("--requirepass", PASSWORD) as locked:
        assert await data_of(right := opened(store_url=locked.url_with(PASSWORD)), await put(right)) == b"abc"
        wrong = opened(store_url=locked.url_with("wrong-" + PASSWORD))
        without = opened(store_url=locked.url)
        assert await wrong.put_many([image()]) == await without.put_many([image()]) == [None]
    assert failures == [("put", 1)] * 2
    [told, _] = [record for record in caplog.records if record.getMessage() == "store failed"]
    assert "invalid username-password pair" in str(told.__dict__["fields"])
    assert PASSWORD not in str([record.__dict__ for record in caplog.records])


async def test_failures_are_logged_once_a_minute(opened: Opening, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(store_url="unix:///nowhere/redis.sock")
    for _ in range(5):
        await store.put_many([image()])
    assert [record.getMessage() for record in caplog.records] == ["store failed"]


def test_without_its_package_the_start_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.store.redis_store", raising=False)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(StartupError, match=r"install it: pip install 'freqmerge\[redis\]'$"):
        open_store(Settings(store_url="redis://localhost"), lambda operation, images: None)


@pytest.mark.parametrize(
    "url", [f"redis://:{PASSWORD}@localhost:99999", f"redis://:{PASSWORD}@localhost?ssl_cert_reqs=none"]
)
def test_an_address_that_redis_py_refuses_ends_the_start_and_is_not_shown(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_store(Settings(store_url=url), lambda operation, images: None)
    assert "FREQMERGE_STORE_URL=(hidden)" in str(caught.value)
    assert PASSWORD not in str(caught.value)
