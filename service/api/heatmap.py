"""GET and POST /heatmap: a frequency score and the merged tokens of a picture, drawn over it or as numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from model.config import ScoreName
from service.api import openapi
from service.api.recent import find
from service.api.recognition import recognise
from service.api.schemas import HeatmapData, HeatmapQuery, MergeData, StoredHeatmapQuery
from service.errors import DeadlineExceeded, QueueFull, StoreUnreachable, UnknownImage
from service.http.deadline import Deadline
from service.http.disconnect import CancelledWhenGone
from service.http.exchange import exchange_of
from service.http.faults import Fault, bad_parameter
from service.pictures import jobs
from service.pictures.decoding import COSTLY_S, Costly
from service.runtime.served import ServedModel
from service.runtime.service import Service
from service.store.image_store import StoredImage


def heatmap_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["pictures"], generate_unique_id_function=openapi.operation_id)

    @router.get(
        "/heatmap",
        response_model=HeatmapData,
        response_description=openapi.DRAWING_DESCRIPTION,
        responses=openapi.DRAWING | openapi.problems(UnknownImage, StoreUnreachable, *openapi.DRAWING_PROBLEMS),
        openapi_extra=openapi.TIMEOUT,
    )
    @router.head("/heatmap", include_in_schema=False, response_model=HeatmapData)
    async def heatmap_of_recent(
        request: Request, query: Annotated[StoredHeatmapQuery, Query()], response: Response
    ) -> Response | HeatmapData:
        """Heatmap of a picture that was classified before."""
        service.loaded()
        stored = await find(service, request, query.image_id)
        answer = await _answer(service, request, stored, query)
        headers = (answer if isinstance(answer, Response) else response).headers
        headers["Cache-Control"] = f"private, max-age={int(service.settings.store_ttl_s)}"
        return answer

    @router.post(
        "/heatmap",
        response_model=HeatmapData,
        response_description=openapi.DRAWING_DESCRIPTION,
        responses=openapi.DRAWING | openapi.problems(*openapi.UPLOAD_PROBLEMS),
        openapi_extra=openapi.PICTURE_BODY | openapi.TIMEOUT,
    )
    async def heatmap(request: Request, query: Annotated[HeatmapQuery, Query()]) -> Response | HeatmapData:
        """Heatmap of the picture in the body, which is not kept."""
        _check_size(service, query.size)
        recognised = await recognise(service, request)
        return await _answer(service, request, recognised.stored(), query)

    return router


async def _answer(
    service: Service, request: Request, stored: StoredImage, query: HeatmapQuery
) -> Response | HeatmapData:
    """The drawing as a file, or its numbers; raises `BadParameter` and what `_draw` raises."""
    _check_size(service, query.size)
    served = service.loaded()
    block = position(query.layer, served.config.merge_layers)
    if query.format == "json":
        return numbers(stored, served, block, query.score)
    drawing = jobs.Drawing(query.view, query.colormap, query.opacity, query.size, query.format, block, query.score)
    return Response(await _draw(service, request, stored, drawing), media_type=f"image/{query.format}")


async def _draw(service: Service, request: Request, stored: StoredImage, drawing: jobs.Drawing) -> bytes:
    """The heatmap as a file; raises `QueueFull` or `DeadlineExceeded` if the worker threads are behind."""
    settings = service.settings
    if service.pool.pending >= settings.max_queue_size:
        raise QueueFull(f"expected fewer than {settings.max_queue_size} pictures in work, found that many; try later")
    grid = service.loaded().grid
    timeout_s = Deadline.of(request, settings).timeout_s
    wanted = True
    job = partial(jobs.draw, stored, grid, drawing, settings, service.budget, wanted=lambda: wanted)
    try:
        async with CancelledWhenGone(request), asyncio.timeout(timeout_s):
            with exchange_of(request).stages.measure("draw"):
                try:
                    return await service.pool.run(job, within_s=COSTLY_S)
                except Costly:
                    return await service.costly_pool.run(job, elsewhere=service.workers.decode)
    except TimeoutError:
        raise DeadlineExceeded(
            f"expected a drawing within {timeout_s:g} s, found none; the service is busy, try again later"
        ) from None
    finally:
        wanted = False


def _check_size(service: Service, size: int) -> None:
    largest = service.settings.heatmap_max_side
    if size > largest:
        raise bad_parameter(
            [Fault("size", f"at most {largest} pixels", str(size), str(size))], "ask for a smaller drawing"
        )


def position(layer: int | None, merge_layers: Sequence[int]) -> int:
    """Where a merging block stands among them, the last one for None; raises `BadParameter`."""
    if layer is None:
        return len(merge_layers) - 1
    if layer not in merge_layers:
        expected = f"one of {', '.join(map(str, merge_layers))}"
        raise bad_parameter(
            [Fault("layer", expected, str(layer), str(layer))], "the model merges tokens in these blocks only"
        )
    return merge_layers.index(layer)


def numbers(stored: StoredImage, served: ServedModel, block: int, score: ScoreName = "lfgm") -> HeatmapData:
    """What is drawn, as numbers; the source map is that of the merging block at this position."""
    maps = stored.source_maps.reshape(-1, *served.grid).tolist()
    layers = served.config.merge_layers
    return HeatmapData(
        grid=served.grid,
        score_name=score,
        score=stored.score(score).reshape(served.grid).astype(float).round(6).tolist(),
        source_map=maps[block],
        merges=[
            MergeData(layer=layer, tokens=served.schedule[layer], source_map=owners)
            for layer, owners in zip(layers, maps, strict=True)
        ],
    )
