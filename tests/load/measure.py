"""One load on one running server: the client's figures, the server's CPU, and how busy the machine was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.load import client_process, scrape
from tests.load.figures import summary
from tests.load.loops import Plan
from tests.load.processes import Server, busy_share, fetch, machine_load
from tests.load.targets import HOST


def measure(
    server: Server, requests: Sequence[bytes], *, seconds: float, images: int = 1, stages: bool = True, **how: Any
) -> dict[str, Any]:
    """The figures of a load; `how` is `concurrency` or `rate` and the rest of a `Plan`.

    `stages` asks the service's own metrics, which peers do not have.
    """
    plan = Plan(HOST, server.port, tuple(requests), seconds, **how)
    before = read_metrics(server) if stages else {}
    cpu_s = server.cpu_s()
    with busy_share() as busy:
        seen = client_process.run(plan)
    cpu_s = server.cpu_s() - cpu_s
    figures = {
        **({"concurrency": plan.concurrency} if plan.concurrency else {"rate": plan.rate}),
        "seconds": seconds,
        **summary(seen.samples, seconds, images),
        "server_cpu_us": round(1e6 * cpu_s / max(1, seen.answered)),
        "client_cpu_share": seen.cpu_share,
        "machine_busy_share": busy[0],
        "machine_load": machine_load(),
        "rss_mib": server.rss_bytes() >> 20,
    }
    if stages:
        after = read_metrics(server)
        figures["stages_us"] = scrape.stage_means_us(before, after)
        figures["batch"] = scrape.mean_batch(before, after)
    return figures


def read_metrics(server: Server) -> scrape.Scrape:
    """The service's metrics; raises `RuntimeError` if it does not give them."""
    code, text = fetch(server.port, "/metrics")
    if code != 200:
        raise RuntimeError(f"expected metrics of the service, found status {code}")
    return scrape.parse(text.decode())
