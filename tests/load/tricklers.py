"""`python -m tests.load.tricklers`: many clients that send a byte a second or nothing, and a normal one among them.

For each limit on connections, rounds without and with tricklers alternate. Every trickler connects again when it is cut
off. The normal client connects anew for each picture, one after the other, and every answer has to be 200.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.synchronize import Event
from typing import NamedTuple

import numpy as np
import psutil

from service.http.server import allow_files
from tests.load.costed_engine import Cost
from tests.load.processes import Server
from tests.load.sample_pictures import small_pngs
from tests.load.targets import HOST, OURS, REAL, ROOT

KINDS = (
    b"GET /live HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n",
    b"",
)
"""What the tricklers begin with, in turn: a header, a body, nothing."""


class Round(NamedTuple):
    """What the normal client saw in one round, and the most connections that the server had open in it."""

    seconds: list[float]
    refused: int
    connections: int
    rss_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every answer of the normal client was 200."""
    options = _parser().parse_args(arguments)
    target, cost = (REAL if options.real else OURS), Cost()
    print("| limit | tricklers | most connections | median ms | 99th percentile ms | not 200 | resident MiB |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    failed = 0
    for limit in options.limits:
        with target.start(ROOT, cost, max_connections=limit) as server:
            _round(server, options.seconds / 4)
            rounds: dict[int, list[Round]] = {0: [], options.count: []}
            for _ in range(options.rounds):
                rounds[0].append(_round(server, options.seconds))
                with _tricklers(server.port, options.count):
                    _round(server, options.seconds / 4)  # the server accepts what the kernel has connected
                    rounds[options.count].append(_round(server, options.seconds))
            for count, measured in rounds.items():
                print(_row(limit, count, measured), flush=True)
                failed += sum(one.refused for one in measured)
    return int(failed > 0)


def _row(limit: int, count: int, rounds: list[Round]) -> str:
    seconds = [value for one in rounds for value in one.seconds]
    median, high = np.percentile(seconds, [50, 99], method="inverted_cdf") * 1000
    cells = [
        f"{limit:,}",
        f"{count:,}",
        f"{max(one.connections for one in rounds):,}",
        f"{median:.1f}",
        f"{high:.1f}",
        f"{sum(one.refused for one in rounds)} of {len(seconds):,}",
        f"{max(one.rss_bytes for one in rounds) >> 20:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _round(server: Server, seconds: float) -> Round:
    [picture] = small_pngs(1)
    process = psutil.Process(server.pid)
    taken: list[float] = []
    refused = connections = rss = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        refused += _status(server.port, picture) != 200
        taken.append(time.perf_counter() - began)
        if len(taken) % 50 == 1:
            connections = max(connections, len(process.net_connections("tcp")) - 1)  # one listens
            rss = max(rss, server.rss_bytes())
    return Round(taken, refused, connections, rss)


def _status(port: int, picture: bytes) -> int:
    client = http.client.HTTPConnection(HOST, port, timeout=60)
    with contextlib.closing(client):
        client.request("POST", "/classify", picture, {"Content-Type": "image/png"})
        answer = client.getresponse()
        answer.read()
        return answer.status


@contextlib.contextmanager
def _tricklers(port: int, count: int) -> Iterator[None]:
    """So many of them, in a process of their own, each of which has connected once."""
    context = multiprocessing.get_context("spawn")
    there = context.Event()
    process = context.Process(target=_run, args=(port, count, there), daemon=True)
    process.start()
    try:
        if not there.wait(120):
            raise RuntimeError("expected tricklers that connect, found some that do not")
        yield
    finally:
        process.terminate()
        process.join()


def _run(port: int, count: int, there: Event) -> None:
    allow_files(count)
    asyncio.run(_crowd(port, count, there))


async def _crowd(port: int, count: int, there: Event) -> None:
    connected: set[int] = set()

    def note(number: int) -> None:
        connected.add(number)
        if len(connected) == count:
            there.set()

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(_trickle(port, number, note))


async def _trickle(port: int, number: int, note: Callable[[int], None]) -> None:
    begun = KINDS[number % len(KINDS)]
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, port)
            note(number)
            writer.write(begun)
            await _until_cut_off(reader, writer, b"a" if begun else b"")
            writer.close()
        await asyncio.sleep(0.1)


async def _until_cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, each_second: bytes) -> None:
    while not reader.at_eof():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await reader.read(65536)
        writer.write(each_second)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.load.tricklers", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="tricklers")
    parser.add_argument("--limits", type=int, nargs="+", default=[1024, 256], help="values of max_connections")
    parser.add_argument("--seconds", type=float, default=10, help="of one round")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind")
    parser.add_argument("--real", action="store_true", help="the shipped checkpoint instead of the fake engine")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
