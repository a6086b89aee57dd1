"""How fast a body has to arrive: a steady sender is never cut off, a trickle and a silence are."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Iterator

import pytest

from service.app import create_app
from service.errors import SlowBody
from service.http.pace import LOOKS, Arrivals, Pace
from service.settings import Settings
from tests.service.conftest import DEADLINE_S
from tests.support.doubles import FakeEngine, loader, picture
from tests.support.live import serving
from tests.support.sockets import answers, connect, only
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
