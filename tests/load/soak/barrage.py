"""Hostile files against a real server: what it answered, and what memory it took."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.load.processes import Server
from tests.load.raw_http import request
from tests.load.sample_pictures import small_pngs
from tests.load.soak.talk import Talk, ask
from tests.load.targets import HOST
from tests.support.hostile import Hostile

PLANNED = frozenset({200, 413, 415, 422})
"""What a file may be answered with: classified, too large, a format that is not taken, not to be decoded."""

TALKERS = 4

COPIES = 3
"""Most copies of a picture's pixels at a time: as decoded, converted, and turned upright or laid on white."""


@dataclass(slots=True)
class Barrage:
    """What came of many hostile files."""

    statuses: Counter[int] = field(default_factory=Counter)
    unplanned: list[str] = field(default_factory=list)
    """Files that got another status, and the first bytes of the answer."""
    grown_bytes: int = 0
    """By how much the server's most memory ever rose."""


def bound_bytes(threads: int, max_pixels: int) -> int:
    """Most memory that decoding may need: every thread with the largest picture, in `COPIES` of 4 bytes a pixel."""
    return threads * max_pixels * 4 * COPIES


async def fire(server: Server, files: Iterable[Hostile], talkers: int = TALKERS) -> Barrage:
    """Sends every file once, several at a time, and a sound one at the end, which must be classified."""
    result = Barrage()
    before = server.peak_rss_bytes()
    waiting = iter(files)
    async with asyncio.TaskGroup() as group:
        for _ in range(talkers):
            group.create_task(_talk(server.port, waiting, result))
    result.grown_bytes = server.peak_rss_bytes() - before
    sound = await ask(server.port, classify(small_pngs(1)[0]))
    if sound.status != 200:
        result.unplanned.append(f"a sound file afterwards: {sound.status} {sound.body[:200]!r}")
    return result


def classify(data: bytes) -> bytes:
    """A request with the file as it is."""
    return request("POST", "/classify", HOST, data, {"Content-Type": "image/png"})


async def _talk(port: int, files: Iterator[Hostile], result: Barrage) -> None:
    talk = Talk(port)
    for file in files:
        answer = await talk.ask(classify(file.data))
        result.statuses[answer.status] += 1
        if answer.status not in PLANNED:
            result.unplanned.append(f"{file.how}: {answer.status} {answer.body[:200]!r}")
    talk.close()
