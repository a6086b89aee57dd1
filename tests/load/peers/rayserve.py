"""Ray Serve: one replica with `serve.batch`, room for many ongoing requests, and its switch for throughput."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from tests.load.costed_engine import MAX_BATCH_SIZE, Cost
from tests.load.peers.work import Pixels, Work, cost_of, options

ONGOING = 4 * MAX_BATCH_SIZE
"""More than one batch, as the docs ask: what waits for the next one counts too."""


class Classifier:
    """Decodes and infers on threads of the replica."""

    def __init__(self, cost: Cost) -> None:
        self._work = Work(cost)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """The answer for one picture."""
        if request.method == "GET":
            return {}
        pixels = await asyncio.to_thread(self._work.decode, await request.body())
        answer: dict[str, Any] = await self._infer(pixels)
        return answer

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0.01)
    async def _infer(self, images: list[Pixels]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._work.infer, images)


if __name__ == "__main__":
    arguments = options()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    deployed = serve.deployment(num_replicas=1, max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 1})(
        Classifier
    )
    serve.run(deployed.bind(cost_of(arguments)), route_prefix="/classify")
    signal.pause()  # Ray ends its processes at SIGTERM
