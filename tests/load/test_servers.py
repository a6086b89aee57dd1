"""The benchmark against a real server process, for one second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.load import loops, markdown_tables, processes, sections
from tests.load.connection import Connection
from tests.load.costed_engine import Cost
from tests.load.loops import Plan
from tests.load.measure import measure
from tests.load.processes import Server
from tests.load.raw_http import request
from tests.load.soak.talk import ask, leave
from tests.load.targets import HOST, OURS

COST = Cost(0.005, 0.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with OURS.start(Path(), COST, log_sample=0, max_queue_size=4) as started:
        yield started


def test_a_closed_loop_gives_latencies_cpu_and_stages(server: Server) -> None:
    found = measure(server, sections.singles(OURS), seconds=1.0, warm_s=0.2, concurrency=2)
    assert set(found["statuses"]) == {"200"}
    assert 5 <= found["p50_ms"] <= found["p99_ms"]
    assert 0 < found["images_per_s"] <= 2 / COST.base_s
    assert found["images_per_s"] * 0.9 <= found["requests"]
    assert found["stages_us"]["engine"] >= 5000
    assert set(found["stages_us"]) >= {"read", "decode", "queue", "engine", "encode"}
    assert 50 < found["server_cpu_us"] < 100_000
    assert 1 <= found["batch"] <= 2
    told = markdown_tables.sweep([{"kind": "closed", "server": "freqmerge", **found}], "freqmerge")
    assert "| 2 clients |" in told


def test_an_open_loop_at_too_high_a_rate_is_refused_not_slowed_down(server: Server) -> None:
    plan = Plan(HOST, server.port, tuple(sections.singles(OURS)), seconds=0.5, rate=1500, connections=64)
    seen = asyncio.run(loops.open_loop(plan))
    assert len(seen.samples) == 750
    assert {sample.status for sample in seen.samples} == {200, 429}
    assert seen.answered == 750


class Double(asyncio.Protocol):
    """The server's end of a connection: hangs up, or answers after `answer_after_s`."""

    taken = 0
    answer_after_s: float | None = None

    def __init__(self, ended: asyncio.Semaphore) -> None:
        type(self).taken += 1
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.answer_after_s is None:
            self._transport.close()
            return
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        asyncio.get_running_loop().call_later(self.answer_after_s, self._transport.write, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.release()


async def loaded(double: type[Double], **plan: Any) -> loops.Load:
    """What the client saw of the double, all of whose connections have ended."""
    ended = asyncio.Semaphore(0)
    listening = await asyncio.get_running_loop().create_server(lambda: double(ended), HOST, 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        make = loops.open_loop if "rate" in plan else loops.closed_loop
        seen = await make(Plan(HOST, port, (request("GET", "/", HOST),), **plan))
        for _ in range(double.taken):
            async with asyncio.timeout(20):
                await ended.acquire()
    return seen


def test_latency_counts_from_the_moment_at_which_a_request_was_due() -> None:
    class Slow(Double):
        answer_after_s = 0.1

    seen = asyncio.run(loaded(Slow, seconds=0.03, rate=100, connections=1))
    first, second, third = seen.samples  # due at 0, 10 and 20 ms; answered at 100, 200 and 300
    assert first.latency_s >= 0.1 - 0.005
    assert second.latency_s >= 0.19 - 0.005
    assert third.latency_s >= 0.28 - 0.005


def test_a_connection_that_breaks_gives_status_0_and_is_replaced() -> None:
    class Rude(Double):
        pass

    seen = asyncio.run(loaded(Rude, seconds=0.2, concurrency=1))
    assert {sample.status for sample in seen.samples} == {0}
    assert Rude.taken > 1
    assert seen.answered == 0


def test_a_connection_without_a_socket_has_no_answer() -> None:
    told: list[int] = []
    connection = Connection(lambda _, answer: told.append(answer.status))
    connection.send(b"", 0.0)
    assert told == [0]
    assert not connection.usable


def test_a_client_that_leaves_does_no_harm(server: Server) -> None:
    whole = sections.singles(OURS)[0]

    async def left() -> int:
        await leave(server.port, whole[:50], 0.0)
        await leave(server.port, whole, 0.0)
        return (await ask(server.port, whole)).status

    assert asyncio.run(left()) == 200


def test_memory_and_cpu_are_those_of_the_server(server: Server) -> None:
    first = processes.tree(server.pid)[0]
    assert first.pid == server.pid
    own = first.memory_info().rss
    assert 20 << 20 < own <= server.peak_rss_bytes()
    assert server.rss_bytes() >= own - (1 << 20), "of the processes that decode, too"
    assert server.cpu_s() > 0.1


def test_a_server_that_ends_at_once_says_why() -> None:
    with pytest.raises(RuntimeError, match="max_batch_size|MAX_BATCH_SIZE"):
        OURS.start(Path(), COST, max_batch_size=0)
