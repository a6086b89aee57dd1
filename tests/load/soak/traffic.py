"""Everything that clients do to a service, at once, until a moment comes."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from tests.load.raw_http import multipart, request
from tests.load.sample_pictures import photos, small_pngs
from tests.load.soak.barrage import PLANNED, classify
from tests.load.soak.talk import Talk, leave
from tests.load.targets import HOST
from tests.support.hostile import Hostile, corpus

HOSTILE = 500
"""Files that are sent round and round."""


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    """By kind of client and status."""
    unplanned: list[str] = field(default_factory=list)

    def note(self, kind: str, status: int, planned: frozenset[int], told: str = "") -> None:
        """Counts one answer."""
        self.statuses[f"{kind} {status}"] += 1
        if status not in planned and len(self.unplanned) < 20:
            self.unplanned.append(f"{kind}: {status} {told}")


Client = Callable[[int, Tally, float], Awaitable[None]]


async def classifier(port: int, tally: Tally, until: float) -> None:
    """Small pictures and photos, one after another."""
    requests = itertools.cycle([classify(file) for file in [*small_pngs(60), *photos()]])
    await _ask(port, tally, until, "classify", requests)


async def drawer(port: int, tally: Tally, until: float) -> None:
    """Heatmaps of photos, in every format."""
    paths = [f"/heatmap?format={format}&size=512" for format in ("png", "webp")]
    requests = [
        request("POST", path, HOST, file, {"Content-Type": "image/jpeg"}) for file in photos() for path in paths
    ]
    await _ask(port, tally, until, "heatmap", itertools.cycle(requests))


async def batcher(port: int, tally: Tally, until: float) -> None:
    """Forms of sixteen files, one of which is hostile."""
    forms = []
    for hostile in corpus(20, seed=1):
        body, media_type = multipart([*small_pngs(15), hostile.data])
        forms.append(request("POST", "/classify/batch", HOST, body, {"Content-Type": media_type}))
    await _ask(port, tally, until, "batch", itertools.cycle(forms), frozenset({200, 413}))


async def attacker(port: int, tally: Tally, until: float) -> None:
    """Hostile files."""
    files: Iterator[Hostile] = itertools.cycle(corpus(HOSTILE))
    await _ask(port, tally, until, "hostile", (classify(file.data) for file in files), PLANNED)


async def leaver(port: int, tally: Tally, until: float) -> None:
    """Clients that go while they send, or while they wait."""
    random = Random(0)
    whole = [classify(file) for file in [*small_pngs(5), *photos()]]
    while time.monotonic() < until:
        sent = random.choice(whole)
        await leave(port, sent[: random.choice((10, len(sent) // 2, len(sent)))], random.choice((0.0, 0.002, 0.02)))
        tally.statuses["left"] += 1
        await asyncio.sleep(0.02)


async def watcher(port: int, tally: Tally, until: float) -> None:
    """A scraper and the probes, every two seconds."""
    talk = Talk(port)
    while time.monotonic() < until:
        for path in ("/live", "/ready", "/metrics", "/openapi.json"):
            answer = await talk.ask(request("GET", path, HOST))
            tally.note(path, answer.status, frozenset({200}))
        await asyncio.sleep(2)
    talk.close()


CLIENTS: tuple[Client, ...] = (classifier,) * 6 + (drawer, batcher, attacker, leaver, watcher)


async def play(port: int, seconds: float) -> Tally:
    """What all clients together saw in so many seconds."""
    tally = Tally()
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for client in CLIENTS:
            group.create_task(_run(client, port, tally, until))
    return tally


async def _run(client: Client, port: int, tally: Tally, until: float) -> None:
    await client(port, tally, until)


async def _ask(
    port: int,
    tally: Tally,
    until: float,
    kind: str,
    requests: Iterator[bytes],
    planned: frozenset[int] = frozenset({200}),
) -> None:
    talk = Talk(port)
    while time.monotonic() < until:
        answer = await talk.ask(next(requests))
        tally.note(kind, answer.status, planned, repr(answer.body[:200]))
    talk.close()
