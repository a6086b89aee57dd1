"""`python -m tests.load.client_process`: the load client as a process of its own; a plan on stdin, samples on stdout.

In its own process, or the client's share of the interpreter would be measured as the server's latency.
"""

from __future__ import annotations

import base64
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any, NamedTuple

from tests.load.figures import Sample
from tests.load.loops import Load, Plan, closed_loop, open_loop


class Seen(NamedTuple):
    """What a client saw, and the share of one core that it needed itself: near 1 it was the limit."""

    samples: list[Sample]
    answered: int
    cpu_share: float


class Client:
    """A running load client."""

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load.client_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._process.stdin is not None:
            self._process.stdin.write(_dump(plan))
            self._process.stdin.close()
            self._process.stdin = None

    def seen(self) -> Seen:
        """Waits for its end; raises `RuntimeError` if it failed."""
        told, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"expected the load client to end, found exit code {self._process.returncode}")
        answer = json.loads(told)
        return Seen([Sample(*one) for one in answer["samples"]], answer["answered"], answer["cpu_share"])


def run(plan: Plan) -> Seen:
    """What one client process saw."""
    return Client(plan).seen()


def _dump(plan: Plan) -> str:
    requests = [base64.b64encode(request).decode() for request in plan.requests]
    return json.dumps(asdict(plan) | {"requests": requests})


def _load(text: str) -> Plan:
    told: dict[str, Any] = json.loads(text)
    requests = tuple(base64.b64decode(request) for request in told.pop("requests"))
    return Plan(requests=requests, **told)


def main() -> None:
    """Makes the load."""
    import uvloop

    plan = _load(sys.stdin.read())
    began, used = time.perf_counter(), _cpu_s()
    load = uvloop.run(_make(plan))
    share = (_cpu_s() - used) / (time.perf_counter() - began)
    json.dump({"samples": load.samples, "answered": load.answered, "cpu_share": round(share, 3)}, sys.stdout)


async def _make(plan: Plan) -> Load:
    return await (open_loop(plan) if plan.rate else closed_loop(plan))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
