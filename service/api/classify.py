"""POST /classify: one picture, its labels and the address of its heatmap."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from fastapi import APIRouter, Query
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from service.api import openapi
from service.api.predictions import doubts, most_probable
from service.api.recent import keep
from service.api.recognition import Recognised, recognise
from service.api.schemas import Classification, ClassifyQuery, ModelName, Prediction
from service.http.exchange import exchange_of
from service.http.queryless_route import QuerylessRoute
from service.runtime.served import ServedModel
from service.runtime.service import Service

CLASSIFICATION = TypeAdapter(Classification)
UNASKED = ClassifyQuery()
"""What a request without a query asks for."""


def classify_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["pictures"], route_class=QuerylessRoute, generate_unique_id_function=openapi.operation_id)

    @router.post(
        "/classify",
        response_model=Classification,
        responses=openapi.problems(*openapi.UPLOAD_PROBLEMS),
        openapi_extra=openapi.PICTURE_BODY | openapi.TIMEOUT,
    )
    async def classify(request: Request, query: Annotated[ClassifyQuery, Query()] = UNASKED) -> Response:
        """Labels of the picture in the body, most probable first, and where its heatmap is."""
        recognised = await recognise(service, request)
        [image_id] = await keep(service, request, [recognised])
        stages = exchange_of(request).stages
        with stages.measure("encode"):
            labelled = label(service, recognised, query.top_k)
            body: Classification = {
                "image_id": image_id,
                "heatmap_url": heatmap_url(image_id),
                "predictions": labelled.predictions,
                "certain": labelled.certain,
                "warnings": labelled.warnings,
                "model": model_name(recognised.model),
                "timings_ms": stages.milliseconds(),
            }
            return Response(CLASSIFICATION.dump_json(body), media_type="application/json")

    return router


class Labelled(NamedTuple):
    """What is said of a picture."""

    predictions: list[Prediction]
    certain: bool | None
    """Whether the first of them counts as certain; None where the checkpoint does not say from when."""
    warnings: list[str]
    """What is wrong with the file, and what speaks against the answer."""


def label(service: Service, recognised: Recognised, top_k: int) -> Labelled:
    """The most probable labels of a picture, and what to make of them; counts the prediction."""
    best = most_probable(recognised.answer.logits, service.labels, top_k)
    service.metrics.predicted(best[0]["class_id"])
    certain_from = recognised.model.manifest.certain_from
    doubted = doubts(best[0], len(service.labels), certain_from)
    return Labelled(best, None if certain_from is None else not doubted, [*recognised.warnings, *doubted])


def heatmap_url(image_id: str | None, root: str = "") -> str | None:
    """Where the heatmap is of a picture kept under this id.

    `root` leads from the route to the service's root: the address is relative, so that it also resolves behind a
    proxy that adds a prefix.
    """
    return f"{root}heatmap?image_id={image_id}" if image_id else None


def model_name(served: ServedModel) -> ModelName:
    """Which weights gave an answer."""
    return ModelName(name=served.manifest.name, digest=served.manifest.digest)
