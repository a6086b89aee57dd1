"""`python -m tests.load.scale`: Ray Serve layouts beside the single process, and what a killed replica costs.

A layout is so many ingresses times so many engines: `2x1`. Load `engine` makes the engine the limit, load `http` the
way to it. Runs of some layouts keep the records of the others.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.load import client_process, load_records, markdown_tables, processes
from tests.load.costed_engine import Cost
from tests.load.loops import Plan
from tests.load.measure import measure
from tests.load.processes import Server
from tests.load.sections import singles
from tests.load.targets import HOST, OURS, SCALED

NAME = "service_scale"
BATCH = 16
CLIENTS = {"engine": 80, "http": 64}
COSTS = {"engine": Cost(0.02, 0.03), "http": Cost(0.002, 0.0001)}
SINGLE, KILL = "single", "kill"
LAYOUTS = (SINGLE, "1x1", "2x1", "4x1", "1x2", "2x2", "4x2")
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}


def start(layout: str, cost: Cost, haproxy: bool = False) -> Server:
    """A server of that layout, ready."""
    settings: dict[str, Any] = {"max_batch_size": BATCH, "log_sample": 0, "log_level": "warning"}
    if layout == SINGLE:
        return OURS.start(Path(), cost, **settings)
    ingresses, engines = layout.split("x")
    settings |= {"ingress_min_replicas": ingresses, "ingress_max_replicas": ingresses, "engine_replicas": engines}
    return SCALED.start(Path(), cost, HAPROXY if haproxy else {}, **settings)


def layout_figures(layout: str, load: str, seconds: float, haproxy: bool) -> dict[str, Any]:
    """What one layout delivers."""
    with start(layout, COSTS[load], haproxy) as server:
        figures = measure(server, singles(OURS), seconds=seconds, warm_s=2.0, concurrency=CLIENTS[load], stages=False)
    return {"kind": "layout", "layout": layout, "load": load, "haproxy": haproxy, **figures}


def kill_figures(seconds: float) -> list[dict[str, Any]]:
    """What the clients of two ingresses and two engines saw when one of each was killed, one after the other."""
    found = []
    with start("2x2", COSTS["engine"]) as server:
        for deployment in ("Engine", "Ingress"):
            plan = Plan(HOST, server.port, tuple(singles(OURS)), seconds, warm_s=1.0, concurrency=64)
            running = client_process.Client(plan)
            time.sleep(1.0 + seconds / 3)
            os.kill(replica_pids(server, deployment)[0], signal.SIGKILL)
            seen = running.seen()
            statuses = Counter(str(sample.status) for sample in seen.samples)
            longest = max(sample.latency_s for sample in seen.samples)
            found.append(
                {
                    "kind": KILL,
                    "killed": deployment.lower(),
                    "clients": 64,
                    "requests": len(seen.samples),
                    "statuses": dict(statuses),
                    "longest_ms": round(1000 * longest, 1),
                }
            )
            _until(lambda: len(replica_pids(server, deployment)) == 2, 60.0)  # noqa: B023 - called at once
    return found


def replica_pids(server: Server, deployment: str) -> list[int]:
    """The processes of a deployment's replicas."""
    wanted = f"ServeReplica:freqmerge:{deployment}"
    return [process.pid for process in processes.tree(server.pid) if wanted in processes.command(process)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when everything has run."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    processes.end_with_context()
    command = " ".join(["python -m tests.load.scale", *given])
    path = options.results
    for layout in options.layouts:
        sys.stderr.write(f"bench: {options.load} {layout} …\n")
        figures = layout_figures(layout, options.load, options.seconds, options.haproxy)
        path = load_records.merge(NAME, command, [figures], _key, options.results)
    if options.kill:
        sys.stderr.write("bench: kill …\n")
        path = load_records.merge(NAME, command, kill_figures(max(9.0, options.seconds)), _key, options.results)
    found = load_records.read(NAME, options.results)
    sys.stdout.write(f"{markdown_tables.scale(found)}\n{markdown_tables.kills(found)}\nrecords: {path}\n")
    return 0


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("kind", "layout", "load", "haproxy", "killed"))


def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.load.scale", description=__doc__)
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=LAYOUTS, help="what to measure")
    parser.add_argument("--load", choices=tuple(COSTS), default="engine", help="what is to be the limit")
    parser.add_argument("--haproxy", action="store_true", help="with Ray's HAProxy mode")
    parser.add_argument("--kill", action="store_true", help="kill a replica of each kind under load as well")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured seconds of each load")
    parser.add_argument("--results", type=Path, default=load_records.RESULTS, help="folder of the records")
    return parser


if __name__ == "__main__":
    sys.exit(main())
