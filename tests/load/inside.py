"""What cannot be seen from outside a server: the batcher's own share of a latency, and the CPU of decoding."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from typing import Any

import numpy as np

from service.batching.batcher import Batcher
from service.batching.waiting import Limits
from service.pictures.jobs import decode_file
from service.settings import Settings
from tests.load.costed_engine import NATIVE, Cost, CostedEngine
from tests.load.sample_pictures import small_pngs

COST = Cost(0.002, 0.0)


def batcher_added(repeats: int = 1000) -> dict[str, Any]:
    """p50 of one image through the batcher, less p50 of the same call of the engine alone; milliseconds.

    Both are timed in turns, so that a change of the machine meets both.
    """
    direct, through = asyncio.run(_turns(repeats))
    p50 = {"direct_p50_ms": 1000 * statistics.median(direct), "batcher_p50_ms": 1000 * statistics.median(through)}
    added = p50["batcher_p50_ms"] - p50["direct_p50_ms"]
    told = {name: round(value, 4) for name, value in p50.items()}
    return {"kind": "batcher", "repeats": repeats, **told, "added_p50_ms": round(added, 4)}


def decode_cpu_us(repeats: int = 2000) -> dict[str, Any]:
    """CPU time of decoding one small PNG on this thread, in microseconds; what the CPU goal leaves out."""
    settings, pictures = Settings(), small_pngs()
    decode_file(pictures[0], settings, NATIVE)
    began = time.thread_time()
    for number in range(repeats):
        decode_file(pictures[number % len(pictures)], settings, NATIVE)
    return {"kind": "decode", "repeats": repeats, "cpu_us": round(1e6 * (time.thread_time() - began) / repeats, 1)}


async def _turns(repeats: int) -> tuple[list[float], list[float]]:
    engine = CostedEngine(COST)
    batcher = Batcher(Limits(1, 0.0, 16))
    thread = threading.Thread(target=batcher.serve, args=(CostedEngine(COST),), daemon=True)
    thread.start()
    image = np.zeros((3, NATIVE, NATIVE), np.uint8)
    direct, through = [], []
    try:
        for _ in range(repeats):
            began = time.perf_counter()
            engine.run(image[None])
            middle = time.perf_counter()
            with batcher.reserve(1, 30.0) as places:
                batcher.put(places.slots[0], image)
                await places.slots[0].answer
            direct.append(middle - began)
            through.append(time.perf_counter() - middle)
    finally:
        batcher.stop()
        await asyncio.to_thread(thread.join)
    return direct, through
