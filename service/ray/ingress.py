"""The ingress replica: every route of the service, with an engine that is a call to another replica."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from prometheus_client.registry import Collector
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from service.app import create_app
from service.errors import NotReady
from service.observe import log
from service.ray.engine import replica_name
from service.ray.gathered import Family, Gathered, families
from service.ray.plan import INGRESS, longest_call_s
from service.ray.remote import remote_model
from service.ray.wire import Reply
from service.runtime.served import ServedModel
from service.runtime.service import Service
from service.settings import Settings

GATHER_S = 3.0
"""Longest wait for the metrics of other replicas, well below the ten seconds that Prometheus waits."""


class Ingress:
    """The web application; `engine` is Ray's handle of the engine deployment."""

    def __init__(self, engine: Any, settings: Settings) -> None:
        """Builds the app, which Ray starts next: the replica runs once an engine has answered."""
        log.configure(settings.log_level)
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._app = create_app(settings, self._load, start_warm=True)
        self._service: Service = self._app.state.service
        self._service.gather = self._every_replica

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app."""
        return self._app

    async def families(self) -> tuple[str, list[Family]]:
        """The replica's name and its metrics."""
        return replica_name(), families(self._service.metrics.registry, engine=False)

    async def check_health(self) -> None:
        """Raises what ended the service. An engine that is away is no reason to replace an ingress."""
        if self._service.failure is not None:
            raise self._service.failure

    def _load(self, settings: Settings) -> ServedModel:
        description = asyncio.run_coroutine_threadsafe(self._describe(), self._loop).result()
        return remote_model(description, self._call, self._loop, longest_call_s(settings), settings.engine_replicas)

    async def _describe(self) -> Any:
        return await self._engine.describe.remote()

    async def _call(self, images: NDArray[np.uint8]) -> Reply:
        try:
            reply: Reply = await self._engine.run.remote(images)
        except (RayError, RayServeException) as error:
            return NotReady(f"expected an answer of an engine replica, found {type(error).__name__}; try again later")
        return reply

    async def _every_replica(self) -> Collector:
        """The metrics of all replicas that tell them in time."""
        own = await self.families()
        others = serve.get_deployment_handle(INGRESS, serve.get_replica_context().app_name)
        calls = (_families_of(handle) for handle in (others, self._engine))
        return Gathered(dict([own, *(reply for replies in await asyncio.gather(*calls) for reply in replies)]))


async def _families_of(handle: Any) -> list[tuple[str, list[Family]]]:
    try:
        replies = await handle.broadcast("families").results_async(timeout_s=GATHER_S, return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):
        return []
    return [reply for reply in replies if not isinstance(reply, BaseException)]
