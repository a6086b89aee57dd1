"""The routes about the service itself: probes, metrics, model card, labels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api import openapi
from service.api.answers import json_answer
from service.api.pipeline import service_of
from service.api.schemas import Health, Labels, ModelCard
from service.errors import Draining, NotReady
from service.http.direct import DirectRoute
from service.observe.metrics import exposition
from service.runtime import card

Endpoint = Callable[[Request], Awaitable[Response]]


def add_status_routes(app: FastAPI) -> None:
    """Adds the routes to the app."""
    unready = openapi.problems(NotReady, Draining)
    _get(app, "/live", live, openapi.answers(Health))
    _get(app, "/ready", ready, openapi.answers(Health) | unready)
    _get(app, "/model", model, openapi.answers(ModelCard) | unready)
    _get(app, "/labels", labels, openapi.answers(Labels) | unready)
    _get(app, "/metrics", metrics, openapi.METRICS)


async def live(request: Request) -> Response:
    """Whether the event loop turns; says nothing about the model."""
    return json_answer({"status": "alive"})


async def ready(request: Request) -> Response:
    """Whether pictures are answered: the engine is warm and makes progress, and nothing ends."""
    service_of(request).check_ready()
    return json_answer({"status": "ready"})


async def model(request: Request) -> Response:
    """Name, digest, config, schedule, engine and scores of the model that is served."""
    service = service_of(request)
    return json_answer(card.model_card(service.loaded(), service.settings))


async def labels(request: Request) -> Response:
    """All classes by id, with their superclasses."""
    service = service_of(request)
    service.loaded()
    return json_answer({"labels": service.labels})


async def metrics(request: Request) -> Response:
    """Prometheus metrics, as OpenMetrics if the client accepts that; of every replica, where there are several."""
    registry = await service_of(request).gather()
    body, media_type = await asyncio.to_thread(exposition, registry, request.headers.get("accept", ""))
    return Response(body, media_type=media_type)


def _get(app: FastAPI, path: str, endpoint: Endpoint, responses: openapi.Responses) -> None:
    app.router.add_api_route(
        path, endpoint, methods=["GET"], tags=["status"], responses=responses, route_class_override=DirectRoute
    )
    app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
