"""How fast a body has to arrive: a steady sender is never cut off, a trickle and a silence are."""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request

from service.app import create_app
from service.errors import QueueFull, SlowBody
from service.http.body import read_body
from service.http.exchange import SCOPE_KEY, Exchange
from service.http.middleware import Observe
from service.http.pace import LOOKS, Arrivals, Pace
from service.runtime.body_budget import BodyBudget
from service.settings import MIB, Settings
from tests.service.conftest import DEADLINE_S
from tests.support.doubles import FakeEngine, loader, picture
from tests.support.live import serving
from tests.support.sockets import answers, connect, only, wait_until
from tests.support.wire import problem

DEFAULT = Pace.of(Settings())
LOOK_S = DEFAULT.window_s / LOOKS


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app(Settings(body_timeout_s=1), loader(FakeEngine()))) as found:
        yield found


async def arrives(size_at: Callable[[float], float], seconds: float, pace: Pace = DEFAULT) -> float:
    """Seconds that a body lasts of which so many bytes have arrived at a time, at most as many as given."""
    arrivals = Arrivals(pace)
    lasted = 0.0
    try:
        with arrivals.begin() as arrival:
            while lasted < seconds:
                lasted += LOOK_S
                arrival.size = int(size_at(lasted))
                arrivals.look()
                await asyncio.sleep(0)
    except SlowBody:
        assert not arrivals.open
        return lasted
    return seconds


@pytest.mark.anyio
async def test_ten_megabytes_at_a_steady_hundred_kilobytes_a_second_pass() -> None:
    assert await arrives(lambda time_s: 100e3 * time_s, 105) == 105


@pytest.mark.anyio
async def test_a_trickle_is_ended_after_one_window_wherever_in_it_the_body_began() -> None:
    assert DEFAULT.window_s < await arrives(lambda time_s: 1000 * time_s, 100) <= DEFAULT.window_s + LOOK_S


@pytest.mark.anyio
async def test_what_came_fast_at_first_does_not_pay_for_a_trickle_later() -> None:
    lasted = await arrives(lambda time_s: 9e6 + 1000 * time_s, 1000)
    assert lasted <= 2 * DEFAULT.window_s


@pytest.mark.anyio
@pytest.mark.parametrize("silent_s", [10, 17])
async def test_a_pause_shorter_than_the_window_is_made_up_for_by_what_comes_around_it(silent_s: float) -> None:
    def bursts(time_s: float) -> float:
        whole, rest = divmod(time_s, silent_s + 3)
        return 700e3 * (whole + min(rest, 3) / 3)

    assert await arrives(bursts, 300) == 300


@pytest.mark.anyio
async def test_without_a_least_rate_a_byte_in_every_window_is_enough() -> None:
    pace = Pace.of(Settings(min_body_bytes_per_s=0))
    assert await arrives(lambda time_s: time_s // 10, 300, pace) == 300
    assert await arrives(lambda time_s: min(time_s // 10, 5), 300, pace) == 50 + pace.window_s


@pytest.mark.anyio
async def test_a_cancellation_of_the_reader_itself_stays_one() -> None:
    arrivals = Arrivals(DEFAULT)

    async def read() -> None:
        with arrivals.begin():
            await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not arrivals.open


@pytest.mark.anyio
async def test_one_timer_serves_all_bodies_and_ends_with_them() -> None:
    arrivals = Arrivals(Pace(0.01, 1))
    with arrivals.begin(), arrivals.begin():
        timer = arrivals._timer
        assert timer is not None
    async with asyncio.timeout(DEADLINE_S):
        while arrivals._timer is not None:  # noqa: ASYNC110 - the loop's timer clears it, which sets no event
            await asyncio.sleep(0)


@pytest.mark.anyio
async def test_the_slower_bodies_are_those_that_brought_less_in_the_last_window_and_none_that_has_just_begun() -> None:
    arrivals = Arrivals(Pace(LOOKS, 1))
    with arrivals.begin() as once, arrivals.begin() as slow, arrivals.begin() as fast:
        once.size = 9_000_000  # fast at first, then nothing
        for _ in range(LOOKS + 1):
            slow.size += 1000
            fast.size += 50_000
            arrivals.look()
        with arrivals.begin() as new:
            assert arrivals.slower_than(new) == [once, slow, fast]
            assert arrivals.slower_than(fast) == [once, slow]
            assert arrivals.slower_than(once) == []


class Sender:
    """A request whose body the test sends piece by piece, and what became of reading it."""

    def __init__(self, arrivals: Arrivals, budget: BodyBudget) -> None:
        self.exchange = Exchange("id", arrivals)
        self._pieces: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        request = Request({"type": "http", "headers": [], SCOPE_KEY: self.exchange}, self._pieces.get)  # type: ignore[arg-type]
        self.reading = asyncio.create_task(read_body(request, budget, 10 * MIB))

    async def send(self, size: int, more: bool = True) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": bytes(size), "more_body": more})
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.anyio
async def test_slow_bodies_that_fill_the_memory_for_bodies_give_way_to_a_fast_one_the_slowest_first() -> None:
    arrivals, budget = Arrivals(DEFAULT), BodyBudget(4 * MIB)
    slow = [Sender(arrivals, budget) for _ in range(4)]
    for number, sender in enumerate(slow):
        await sender.send(MIB - 4096 * (4 - number))
    fast = Sender(arrivals, budget)
    await fast.send(2 * MIB)
    with pytest.raises(QueueFull, match="4,194,304 bytes that all bodies may take"):
        await fast.reading  # nobody is known to be slow yet
    for _ in range(2):
        arrivals.look()
    fast = Sender(arrivals, budget)
    await fast.send(2 * MIB)
    assert [sender.reading.done() for sender in slow] == [True, True, False, False]
    for sender in slow[:2]:
        with pytest.raises(SlowBody, match="while all bodies together fill the 4,194,304 bytes") as caught:
            await sender.reading
        assert caught.value.headers == {"Connection": "close"}
        assert sender.exchange.body is not None
        assert sender.exchange.body.held == 0
    await fast.send(100, more=False)
    assert len(await fast.reading) == 2 * MIB + 100
    await slow[2].send(0, more=False)
    assert len(await slow[2].reading) == MIB - 8192
    slow[3].reading.cancel()
    await slow[3].settle()


@pytest.mark.anyio
async def test_where_work_fills_the_memory_for_bodies_slow_ones_stay_and_the_newest_is_refused() -> None:
    arrivals, budget = Arrivals(DEFAULT), BodyBudget(4 * MIB)
    budget.take(3 * MIB)  # bodies that are whole and wait for their answers
    slow = Sender(arrivals, budget)
    await slow.send(MIB - 1)
    for _ in range(2):
        arrivals.look()
    newest = Sender(arrivals, budget)
    await newest.send(2)
    with pytest.raises(QueueFull):
        await newest.reading
    await slow.send(1, more=False)
    assert len(await slow.reading) == MIB


@pytest.mark.anyio
async def test_the_slowest_body_itself_is_refused_where_it_asks_for_more() -> None:
    arrivals, budget = Arrivals(DEFAULT), BodyBudget(MIB)
    fast, slow = Sender(arrivals, budget), Sender(arrivals, budget)
    await fast.send(MIB - 10)
    await slow.send(10)
    for _ in range(2):
        arrivals.look()
    await slow.send(1)
    with pytest.raises(QueueFull):
        await slow.reading
    await fast.send(0, more=False)
    assert len(await fast.reading) == MIB - 10


def test_tricklers_that_fill_the_memory_for_bodies_do_not_keep_a_quick_client_out() -> None:
    limits = {"max_upload_bytes": MIB, "max_batch_upload_bytes": MIB, "max_body_bytes": 2 * MIB}
    app = create_app(Settings(**limits, body_timeout_s=3600), loader(FakeEngine()))
    with serving(app) as url, contextlib.ExitStack() as stack:
        tricklers = [stack.enter_context(connect(url)) for _ in range(2)]
        for raw in tricklers:
            raw.sendall(head(MIB) + bytes(MIB - 4))
        wait_until(lambda: app.state.service.bodies.held == 2 * (MIB - 4))
        refused = httpx.post(f"{url}/classify", content=picture(5))
        problem(refused, 429, "queue_full")
        for _ in range(2):
            arrivals_of(app).look()  # as its timer would
        assert httpx.post(f"{url}/classify", content=picture(5)).status_code == 200
        gone, _, _ = select.select(tricklers, [], [], DEADLINE_S)
        detail = problem(only(answers(gone[0])), 408, "slow_body")["detail"]
    assert "while all bodies together fill the 2,097,152 bytes" in detail
    assert len(gone) == 1


def arrivals_of(app: FastAPI) -> Arrivals:
    """Those of the middleware that every request comes through."""
    layer: Any = app.middleware_stack
    while not isinstance(layer, Observe):
        layer = layer.app
    return layer._arrivals


def head(size: int) -> bytes:
    return b"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size


def test_a_body_that_keeps_the_pace_may_take_longer_than_the_window(url: str) -> None:
    data = picture(5) + bytes(400_000)
    began = time.monotonic()
    with connect(url) as raw:
        raw.sendall(head(len(data)))
        for start in range(0, len(data), 5000):
            assert not select.select([raw], [], [], 0.02)[0]  # 250 kB/s
            raw.sendall(data[start : start + 5000])
        assert only(answers(raw)).status_code == 200
    assert time.monotonic() - began > 1.5


def test_a_body_that_trickles_is_refused_with_what_was_expected_of_it(url: str) -> None:
    with connect(url) as raw:
        raw.sendall(head(100_000))
        deadline = time.monotonic() + DEADLINE_S
        while not select.select([raw], [], [], 0.02)[0]:
            raw.sendall(b"a")
            assert time.monotonic() < deadline
        detail = problem(only(answers(raw)), 408, "slow_body")["detail"]
    assert detail.startswith("expected at least 32,768 bytes of the request body within 1 s, found ")
