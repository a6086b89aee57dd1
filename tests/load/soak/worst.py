"""A search for the file that costs most: mutations are kept where they made decoding slower."""

from __future__ import annotations

import hashlib
import resource
import time
from random import Random
from typing import Any, NamedTuple

from service.errors import RequestError
from service.pictures.decode_pool import DecodeWorkers
from service.pictures.decoding import decode
from tests.support.costly import COSTLY, MIB
from tests.support.hostile import seedlings

LIMIT_S = 2.0
"""CPU time that no file may take, here and in the process that decodes for us together."""

MOST_BYTES = 10 * MIB
KEPT = 24
"""Slowest files that are mutated further."""

LIMITS = {"max_pixels": 50_000_000, "max_full_pixels": 25_000_000, "max_side": 16_384, "keep_side": 448}
WORKER_CPU_S = 1.8


class Found(NamedTuple):
    """A file and what it cost."""

    cpu_s: float
    how: str
    data: bytes
    ended: str

    def told(self) -> dict[str, Any]:
        """The file in a record, by its digest."""
        return {
            "how": self.how[-120:],
            "bytes": len(self.data),
            "sha256": hashlib.sha256(self.data).hexdigest()[:16],
            "cpu_s": round(self.cpu_s, 3),
            "ended": self.ended,
        }


def search(seconds: float, seed: int = 0) -> dict[str, Any]:
    """What the search found in so many seconds; it passes if nothing took more than `LIMIT_S` or broke a worker."""
    random, until = Random(seed), time.monotonic() + seconds
    workers = DecodeWorkers(1, WORKER_CPU_S, 1 << 30)
    tried = 0
    best: list[Found] = []
    try:
        starts = [(how, make()) for how, make in COSTLY.items()] + list(seedlings())
        for how, data in starts:
            best = _kept([*best, _measured(how, data, workers)])
            tried += 1
        while time.monotonic() < until:
            parent = random.choice(best)
            data = _mutated(parent.data, random)
            best = _kept([*best, _measured(f"{parent.how}, {tried}", data, workers)])
            tried += 1
        died = workers.killed["died"] + workers.killed["silent"]
    finally:
        workers.close()
    return {
        "kind": "worst",
        "seconds": seconds,
        "files": tried,
        "limit_s": LIMIT_S,
        "worst": [one.told() for one in best[:10]],
        "statuses": {"ended by the kernel": workers.killed["cpu"], "broke a worker": died},
        "passed": best[0].cpu_s < LIMIT_S and not died,
    }


def _kept(files: list[Found]) -> list[Found]:
    """The slowest, and of every start at most a few."""
    found: list[Found] = []
    for one in sorted(files, key=lambda file: file.cpu_s, reverse=True):
        start = one.how.split(",")[0]
        if sum(other.how.split(",")[0] == start for other in found) < 3:
            found.append(one)
    return found[:KEPT]


def _measured(how: str, data: bytes, workers: DecodeWorkers) -> Found:
    before, killed = _cpu_s() + workers.cpu_s, workers.killed["cpu"]
    try:
        decode(data, **LIMITS, elsewhere=workers.decode)
        ended = "200"
    except RequestError as error:
        ended = f"{error.status} {error.reason}"
    ended_s = WORKER_CPU_S * (workers.killed["cpu"] - killed)
    return Found(_cpu_s() + workers.cpu_s - before + ended_s, how, data, ended)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _mutated(data: bytes, random: Random) -> bytes:
    """The file with a few bytes changed, or a stretch of it doubled, moved or left out."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(min(len(found), random.choice((64, 1024, len(found)))) or 1)
        size = min(len(found) - at, random.choice((1, 4, 16, 256, 4096)))
        way = random.randrange(5)
        if way == 0 and found:
            found[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif way == 1:
            found[at:at] = found[at : at + size] * random.choice((1, 10, 1000))
        elif way == 2:
            del found[at : at + size]
        elif way == 3:
            found[at:at] = random.randbytes(size)
        else:
            found[at : at + 2] = random.choice((b"\0\0", b"\xff\xff", b"\x10\0", b"\0\x10"))
    return bytes(found[:MOST_BYTES])
