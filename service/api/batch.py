"""POST /classify/batch: many files in one form, one answer or one problem for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from service.api import openapi
from service.api.classify import heatmap_url, label, model_name
from service.api.recent import keep
from service.api.recognition import Recognised, recognise_many
from service.api.schemas import BatchClassification, BatchResult, ClassifyQuery, Problem
from service.errors import RequestError, UnsupportedFormat, problem
from service.http import forms
from service.http.body import Upload, read_upload
from service.http.deadline import Deadline
from service.http.exchange import exchange_of
from service.http.prefix import public_path
from service.runtime.service import Service

ROOT = "../"
"""From this route to the service's root, relative: a proxy may add a prefix."""


def batch_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["pictures"], generate_unique_id_function=openapi.operation_id)

    @router.post(
        "/classify/batch",
        response_model=BatchClassification,
        responses=openapi.problems(*openapi.BATCH_PROBLEMS),
        openapi_extra=openapi.FILES_BODY | openapi.TIMEOUT,
    )
    async def classify_batch(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Response:
        """Labels of every picture in the form, in order; a bad file has a problem in its place."""
        stages = exchange_of(request).stages
        deadline = Deadline.of(request, service.settings)
        model = service.accepting()
        files = await _files(service, request)
        ends = await recognise_many(service, request, [Upload(file.data) for file in files], deadline)
        ids = iter(await keep(service, request, [end for end in ends if isinstance(end, Recognised)]))
        with stages.measure("encode"):
            body = BatchClassification(
                results=[
                    _refused(service, request, file, end)
                    if isinstance(end, RequestError)
                    else _classified(service, file, end, next(ids), query.top_k)
                    for file, end in zip(files, ends, strict=True)
                ],
                model=model_name(model),
                timings_ms=stages.milliseconds(),
            )
            return Response(body.model_dump_json(), media_type="application/json")

    return router


async def _files(service: Service, request: Request) -> Sequence[forms.Part]:
    """The files of the form; raises `UnsupportedFormat`, `TooLarge`, `SlowBody`, `ClientGone`, `BadForm` or
    `BadParameter`."""
    settings = service.settings
    declared = request.headers.get("content-type", "")
    if not declared.lower().startswith("multipart/form-data"):
        raise UnsupportedFormat(
            f"expected Content-Type multipart/form-data with one part {forms.FIELD!r} per picture, found "
            f"{declared[:100]!r}; send a single picture to /classify"
        )
    with exchange_of(request).stages.measure("read"):
        form = await read_upload(request, service.bodies, settings.max_batch_upload_bytes)
        most = settings.max_images_per_request
        return await service.pool.run(forms.several_files, form.data, form.boundary or b"", most)


def _classified(
    service: Service, file: forms.Part, recognised: Recognised, image_id: str | None, top_k: int
) -> BatchResult:
    labelled = label(service, recognised, top_k)
    return BatchResult(
        filename=file.filename,
        image_id=image_id,
        heatmap_url=heatmap_url(image_id, ROOT),
        predictions=labelled.predictions,
        certain=labelled.certain,
        warnings=labelled.warnings,
        problem=None,
    )


def _refused(service: Service, request: Request, file: forms.Part, error: RequestError) -> BatchResult:
    service.metrics.rejected(error.reason)
    document = problem(error, public_path(request.scope), exchange_of(request).request_id)
    return BatchResult(
        filename=file.filename,
        image_id=None,
        heatmap_url=None,
        predictions=None,
        certain=None,
        warnings=None,
        problem=Problem(**document),
    )
