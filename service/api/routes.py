"""The routes that take pictures: POST /classify, GET and POST /heatmap."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from service.api import openapi, pipeline
from service.api.answers import json_answer
from service.api.classified import classified
from service.api.merges import numbers, position
from service.api.pipeline import Recognised, service_of
from service.api.schemas import Classification, HeatmapQuery, StoredHeatmapQuery
from service.errors import BadParameter, StoreUnreachable, UnknownImage
from service.http.direct import DirectRoute
from service.http.exchange import exchange_of
from service.http.queries import refuse_unknown
from service.pictures import jobs
from service.store.image_store import StoredImage, stored_image

TopK = Annotated[int, Query(ge=1, le=100, description="how many predictions; fewer if the model has fewer classes")]
CLASSIFY_PARAMETERS = ("top_k",)


def add_routes(app: FastAPI) -> None:
    """Adds the routes to the app."""
    app.router.add_api_route(
        "/classify",
        classify,
        methods=["POST"],
        tags=["pictures"],
        responses=openapi.answers(Classification) | openapi.problems(*openapi.UPLOAD_PROBLEMS),
        openapi_extra=openapi.PICTURE_BODY,
        route_class_override=DirectRoute,
    )
    app.add_api_route(
        "/heatmap",
        heatmap_of_recent,
        methods=["GET"],
        tags=["pictures"],
        responses=openapi.DRAWING | openapi.problems(UnknownImage, StoreUnreachable, *openapi.DRAWING_PROBLEMS),
    )
    app.add_api_route("/heatmap", heatmap_of_recent, methods=["HEAD"], include_in_schema=False)
    app.add_api_route(
        "/heatmap",
        heatmap,
        methods=["POST"],
        tags=["pictures"],
        responses=openapi.DRAWING | openapi.problems(*openapi.UPLOAD_PROBLEMS),
        openapi_extra=openapi.PICTURE_BODY,
    )


async def classify(request: Request, top_k: TopK = 5) -> Response:
    """Labels of the picture in the body, most probable first, and where its heatmap is."""
    refuse_unknown(request, CLASSIFY_PARAMETERS)
    recognised = await pipeline.recognise(request)
    [image_id] = await pipeline.keep(request, [recognised])
    stages = exchange_of(request).stages
    with stages.measure("encode"):
        return json_answer(_classification(request, recognised, image_id, top_k))


async def heatmap_of_recent(request: Request, query: Annotated[StoredHeatmapQuery, Query()]) -> Response:
    """Heatmap of a picture that was classified before."""
    refuse_unknown(request, StoredHeatmapQuery.model_fields)
    service = service_of(request)
    service.loaded()
    stored = await pipeline.kept(request, query.image_id)
    response = await _heatmap(request, stored, query)
    response.headers["Cache-Control"] = f"private, max-age={int(service.settings.store_ttl_s)}"
    return response


async def heatmap(request: Request, query: Annotated[HeatmapQuery, Query()]) -> Response:
    """Heatmap of the picture in the body, which is not kept."""
    refuse_unknown(request, HeatmapQuery.model_fields)
    _check_size(request, query)
    recognised = await pipeline.recognise(request)
    answer = recognised.answer
    stored = stored_image(recognised.data, answer.frequency_score, answer.source_maps)
    return await _heatmap(request, stored, query)


def _classification(request: Request, recognised: Recognised, image_id: str | None, top_k: int) -> dict[str, Any]:
    manifest = recognised.model.manifest
    return {
        **classified(service_of(request), recognised, image_id, top_k),
        "model": {"name": manifest.name, "digest": manifest.digest},
        "timings_ms": exchange_of(request).stages.milliseconds(),
    }


async def _heatmap(request: Request, stored: StoredImage, query: HeatmapQuery) -> Response:
    _check_size(request, query)
    served = service_of(request).loaded()
    block = position(query.layer, served.config.merge_layers)
    if query.format == "json":
        return json_answer(numbers(stored, served, block))
    how = jobs.Drawing(query.view, query.colormap, query.opacity, query.size, query.format, block)
    return Response(await pipeline.draw(request, stored, how), media_type=f"image/{query.format}")


def _check_size(request: Request, query: HeatmapQuery) -> None:
    largest = service_of(request).settings.heatmap_max_side
    if query.size > largest:
        expected = f"at most {largest} pixels"
        raise BadParameter(
            f"size: expected {expected}, found {query.size}; ask for a smaller drawing",
            extra={"errors": [{"parameter": "size", "expected": expected, "found": str(query.size)}]},
        )
