"""The parts of a benchmark of the service alone, each of which starts its own server and gives records."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.load import client_process
from tests.load.costed_engine import Cost
from tests.load.figures import summary
from tests.load.loops import Plan
from tests.load.measure import measure
from tests.load.processes import Server, fetch
from tests.load.raw_http import multipart, request
from tests.load.sample_pictures import small_pngs
from tests.load.targets import HOST, OURS, REAL, Target

Record = dict[str, Any]

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
IMAGES_PER_REQUEST = 64
OVERLOAD = Cost(0.002, 0.004)
"""About 240 images/s: an engine that is the limit, so that three times its capacity is a load that one client
process can make on the same machine."""


@dataclass(frozen=True, slots=True)
class How:
    """How long and with what."""

    seconds: float = 4.0
    warm_s: float = 1.0
    cost: Cost = field(default_factory=Cost)
    python: Path = Path(".venv-bench/bin/python")
    """Of the peers."""
    rounds: int = 3


def singles(target: Target) -> list[bytes]:
    """Requests of one small PNG each."""
    return [target.request(picture) for picture in small_pngs()]


def sweep(how: How, target: Target = OURS, concurrencies: tuple[int, ...] = CONCURRENCIES) -> list[Record]:
    """Closed loop at rising concurrency, then an open loop at half of the best rate, on one server."""
    requests = singles(target)
    records: list[Record] = []
    with target.start(how.python, how.cost, log_sample=0) as server:
        idle = _idle(server, how.seconds)
        for clients in concurrencies:
            figures = measure(server, requests, seconds=how.seconds, warm_s=how.warm_s, concurrency=clients)
            records.append({"kind": "closed", "server": target.name, **figures})
        rate = max(record["images_per_s"] for record in records) / 2
        figures = measure(server, requests, seconds=how.seconds, warm_s=how.warm_s, rate=rate)
        records.append({"kind": "open", "server": target.name, **figures})
    return [*records, {"kind": "idle", "server": target.name, "cpu_share": idle}]


def many_per_request(how: How, target: Target = OURS, offline: float | None = None) -> list[Record]:
    """64 pictures in one request: as files, and as pixels by the Open Inference Protocol.

    `offline` is what the engine does alone, in images/s; the fake one's own cost if it is None.
    """
    offline = how.cost.images_per_s(IMAGES_PER_REQUEST) if offline is None else offline
    records: list[Record] = []
    with target.start(how.python, how.cost, log_sample=0, max_batch_size=IMAGES_PER_REQUEST) as server:
        for route, body in (("/classify/batch", _files()), ("/v2 infer", _pixels(server))):
            figures = measure(
                server,
                [body],
                seconds=how.seconds,
                warm_s=how.warm_s,
                concurrency=3,
                images=IMAGES_PER_REQUEST,
            )
            share = round(figures["images_per_s"] / offline, 4)
            told = {"route": route, "images_per_request": IMAGES_PER_REQUEST, "offline_images_per_s": round(offline, 1)}
            records.append({"kind": "many", "server": target.name, **told, "share_of_offline": share, **figures})
    return records


def overload(how: How) -> list[Record]:
    """Three times the capacity of a slow engine, open loop, with a second client that asks `/live`."""
    # a batch takes a quarter of a second: a short window would count too few of them
    how = replace(how, seconds=5 * how.seconds, warm_s=2 * how.warm_s)
    requests = singles(OURS)
    with OURS.start(how.python, OVERLOAD, log_sample=0, max_queue_size=64) as server:
        peaks = [
            measure(server, requests, seconds=how.seconds, warm_s=how.warm_s, concurrency=clients)
            for clients in (32, 64, 128)
        ]
        peak = max(one["images_per_s"] for one in peaks)
        probes = Plan(HOST, server.port, (request("GET", "/live", HOST),), how.seconds, how.warm_s, rate=50)
        prober = client_process.Client(probes)
        load = measure(server, requests, seconds=how.seconds, warm_s=how.warm_s, rate=3 * peak, connections=512)
        live = summary(prober.seen().samples, how.seconds)
    told = {"peak_images_per_s": peak, "goodput_share": round(load["images_per_s"] / peak, 4), "live": live}
    return [{"kind": "overload", "server": OURS.name, **told, **load}]


def real(how: How) -> list[Record]:
    """The shipped checkpoint on this machine: few clients and many, and 64 pictures per request."""
    records = sweep(how, REAL, (1, 8, 64))
    # a request of 64 images takes seconds on a CPU: a short window would count too few of them
    longer = replace(how, seconds=5 * how.seconds, warm_s=5 * how.warm_s)
    return [*records, *many_per_request(longer, REAL, _offline(how.seconds))]


def _idle(server: Server, seconds: float) -> float:
    """Share of one core that a server without requests uses."""
    used, began = server.cpu_s(), time.monotonic()
    time.sleep(max(seconds, 2.0))
    return round((server.cpu_s() - used) / (time.monotonic() - began), 4)


def _files() -> bytes:
    body, media_type = multipart(small_pngs(IMAGES_PER_REQUEST))
    return request("POST", "/classify/batch", HOST, body, {"Content-Type": media_type})


def _pixels(server: Server) -> bytes:
    """An inference request of 64 random images of the model's own size, as bytes after its JSON."""
    card = json.loads(fetch(server.port, "/model")[1])
    name, side = card["name"], card["native_size"]
    shape = (IMAGES_PER_REQUEST, 3, side, side)
    data = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8).tobytes()
    tensor = {
        "name": "pixels",
        "shape": shape,
        "datatype": "UINT8",
        "parameters": {"binary_data_size": len(data)},
    }
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return request("POST", f"/v2/models/{name}/infer", HOST, head + data, headers)


def _offline(seconds: float) -> float:
    """Images/s of the real engine alone, in this process, at 64 images per batch."""
    from service.runtime.loading import load_model
    from service.settings import read_settings

    engine = load_model(read_settings(max_batch_size=IMAGES_PER_REQUEST)).engine
    engine.warm_up()
    images = np.zeros((IMAGES_PER_REQUEST, 3, engine.native_size, engine.native_size), np.uint8)
    engine.run(images)
    batches, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        engine.run(images)
        batches += 1
    return IMAGES_PER_REQUEST * batches / (time.perf_counter() - began)
