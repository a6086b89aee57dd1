"""The routes about the service itself: probes, metrics, model card, labels."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.api.openapi import operation_id, problems
from service.api.schemas import Health, Labels, ModelCard
from service.errors import Draining, NotReady
from service.observe.metrics import exposition
from service.runtime import card
from service.runtime.service import Service


def status_router(service: Service) -> APIRouter:
    """The routes; each answers HEAD as well."""
    router = APIRouter(tags=["status"], generate_unique_id_function=operation_id)
    unready = problems(NotReady, Draining)

    @router.get("/live")
    @router.head("/live", include_in_schema=False)
    async def live() -> Health:
        """Whether the event loop turns; says nothing about the model."""
        return Health(status="alive")

    @router.get("/ready", responses=unready)
    @router.head("/ready", include_in_schema=False)
    async def ready() -> Health:
        """Whether pictures are answered: the engine is warm and makes progress, and nothing ends."""
        service.check_ready()
        return Health(status="ready")

    @router.get("/model", responses=unready)
    @router.head("/model", include_in_schema=False)
    async def model() -> ModelCard:
        """Name, digest, config, schedule, engine and scores of the model that is served."""
        return ModelCard(**card.model_card(service.loaded(), service.settings))

    @router.get("/labels", responses=unready)
    @router.head("/labels", include_in_schema=False)
    async def labels() -> Labels:
        """All classes by id, with their superclasses."""
        service.loaded()
        return Labels.model_validate({"labels": service.labels})

    @router.get("/metrics", response_class=PlainTextResponse, response_description="Metrics")
    @router.head("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        """Prometheus metrics, as OpenMetrics if the client accepts that; of every replica, where there are several."""
        registry = await service.gather()
        body, media_type = await asyncio.to_thread(exposition, registry, request.headers.get("accept", ""))
        return Response(body, media_type=media_type)

    return router
