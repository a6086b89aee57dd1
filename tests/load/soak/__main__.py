"""`python -m tests.load.soak`: hostile files, ten minutes of mixed load, and a server that leaks and must be caught.

Exit code 0 if nothing unplanned was answered, memory held, and the leak was found.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from tests.load import load_records
from tests.load.costed_engine import Cost
from tests.load.processes import Server, end_with_context, machine_load
from tests.load.soak.barrage import bound_bytes, fire
from tests.load.soak.growth import LIMIT_BYTES, growth
from tests.load.soak.traffic import Tally, play
from tests.load.soak.worst import search
from tests.load.targets import OURS, Target
from tests.support.hostile import corpus

NAME, SEARCH = "service_soak", "service_worst"
EVERY_S = 0.5
LEAK_BYTES = 1 << 16
"""Per request: at any rate worth the name of load more than the limit in half a minute."""

MAX_PIXELS, DECODE_THREADS = 50_000_000, 2
"""The service's defaults."""

Record = dict[str, Any]


def main() -> int:
    """The exit code."""
    options = _parser().parse_args()
    end_with_context()
    results = [
        _hostile(options.files),
        _soak("soak", options.seconds, leak_bytes=0),
        _soak("control", min(options.seconds, options.control_seconds), leak_bytes=LEAK_BYTES),
    ]
    slowest = _told(search(options.search_seconds))
    command = " ".join(["python -m tests.load.soak", *sys.argv[1:]])
    path = load_records.write(NAME, command, results, options.results)
    load_records.write(SEARCH, command, [slowest], options.results)
    sys.stdout.write(f"records: {path}\n")
    good = all(result["passed"] for result in [slowest, *results])
    sys.stdout.write("soak: passed\n" if good else "soak: FAILED\n")
    return 0 if good else 1


def _hostile(files: int) -> Record:
    with OURS.start(Path(), Cost(), log_sample=0, store_max_images=0) as server:
        began = time.monotonic()
        result = asyncio.run(fire(server, corpus(files)))
        bound = bound_bytes(DECODE_THREADS, MAX_PIXELS)
        return _told(
            {
                "kind": "hostile",
                "files": files,
                "seconds": round(time.monotonic() - began, 1),
                "statuses": {str(status): count for status, count in sorted(result.statuses.items())},
                "unplanned": result.unplanned,
                "grown_mib": result.grown_bytes >> 20,
                "bound_mib": bound >> 20,
                "passed": not result.unplanned and result.grown_bytes < bound,
            }
        )


def _soak(kind: str, seconds: float, leak_bytes: int) -> Record:
    """A run of mixed traffic; it passes if memory holds, the control if the same check says that it does not."""
    with _server(leak_bytes) as server:
        tally, rss_bytes = asyncio.run(_watched(server, seconds))
    found = growth(rss_bytes)
    sound = not tally.unplanned
    return _told(
        {
            "kind": kind,
            "seconds": seconds,
            "leak_bytes_per_request": leak_bytes,
            "requests": tally.statuses.total(),
            "statuses": dict(sorted(tally.statuses.items())),
            "unplanned": tally.unplanned,
            "rss_mib": [round(found.middle_bytes / (1 << 20), 1), round(found.end_bytes / (1 << 20), 1)],
            "grown_mib": round(found.grown_bytes / (1 << 20), 1),
            "limit_mib": LIMIT_BYTES >> 20,
            "machine_load": machine_load(),
            "passed": sound and found.holds if not leak_bytes else not found.holds,
        }
    )


def _server(leak_bytes: int) -> Server:
    leaking = ["--leak-bytes", str(leak_bytes)]
    target = Target(
        OURS.name, OURS.label, lambda python, port, cost: OURS.command(python, port, cost) + leaking, OURS.ready
    )
    return target.start(Path(), Cost(), log_sample=0)


async def _watched(server: Server, seconds: float) -> tuple[Tally, list[int]]:
    """Traffic, and the server's memory meanwhile."""
    rss_bytes: list[int] = []

    async def watch() -> None:
        while True:
            rss_bytes.append(server.rss_bytes())
            await asyncio.sleep(EVERY_S)

    watching = asyncio.create_task(watch())
    tally = await play(server.port, seconds)
    watching.cancel()
    return tally, rss_bytes


def _told(result: Record) -> Record:
    shown = {name: value for name, value in result.items() if name != "statuses"}
    sys.stdout.write(f"{shown}\n{result['statuses']}\n")
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.load.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of mixed load; at least 20")
    parser.add_argument("--control-seconds", type=float, default=60.0, help="of load on the server that leaks")
    parser.add_argument("--search-seconds", type=float, default=120.0, help="of search for the slowest picture file")
    parser.add_argument("--files", type=int, default=5000, help="hostile files before that")
    parser.add_argument("--results", type=Path, default=load_records.RESULTS, help="folder of the records")
    return parser


if __name__ == "__main__":
    sys.exit(main())
