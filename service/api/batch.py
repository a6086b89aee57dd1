"""POST /classify/batch: many files in one form, one answer or one problem for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api import openapi, pipeline
from service.api.answers import json_answer
from service.api.classified import classified
from service.api.pipeline import Recognised, service_of
from service.api.routes import CLASSIFY_PARAMETERS, TopK
from service.api.schemas import BatchClassification
from service.errors import RequestError, UnsupportedFormat, problem
from service.http import forms
from service.http.body import read_upload
from service.http.deadline import Deadline
from service.http.exchange import exchange_of
from service.http.prefix import public_path
from service.http.queries import refuse_unknown

UP = "../"
"""From this route to /heatmap, relative: a proxy may add a prefix."""


def add_batch_route(app: FastAPI) -> None:
    """Adds the route to the app."""
    app.add_api_route(
        "/classify/batch",
        classify_batch,
        methods=["POST"],
        tags=["pictures"],
        responses=openapi.answers(BatchClassification) | openapi.problems(*openapi.BATCH_PROBLEMS),
        openapi_extra=openapi.FILES_BODY,
    )


async def classify_batch(request: Request, top_k: TopK = 5) -> Response:
    """Labels of every picture in the form, in order; a bad file has a problem in its place."""
    refuse_unknown(request, CLASSIFY_PARAMETERS)
    service, stages = service_of(request), exchange_of(request).stages
    deadline = Deadline.of(request, service.settings)
    manifest = service.accepting().manifest
    files = await _files(request)
    ends = await pipeline.recognise_many(request, [file.data for file in files], deadline)
    ids = iter(await pipeline.keep(request, [end for end in ends if isinstance(end, Recognised)]))
    with stages.measure("encode"):
        return json_answer(
            {
                "results": [
                    {"filename": file.filename} | _result(request, end, ids, top_k)
                    for file, end in zip(files, ends, strict=True)
                ],
                "model": {"name": manifest.name, "digest": manifest.digest},
                "timings_ms": stages.milliseconds(),
            }
        )


async def _files(request: Request) -> Sequence[forms.Part]:
    """The files of the form; raises `UnsupportedFormat`, `TooLarge`, `SlowBody`, `ClientGone` or `BadForm`."""
    service = service_of(request)
    settings = service.settings
    declared = request.headers.get("content-type", "")
    if not declared.lower().startswith("multipart/form-data"):
        raise UnsupportedFormat(
            f"expected Content-Type multipart/form-data with one part {forms.FIELD!r} per picture, found "
            f"{declared[:100]!r}; send a single picture to /classify"
        )
    with exchange_of(request).stages.measure("read"):
        form = await read_upload(request, settings.max_batch_upload_bytes, settings.body_timeout_s)
        most = settings.max_images_per_request
        return await service.pool.run(forms.several_files, form.data, form.boundary or b"", most)


def _result(request: Request, end: Recognised | RequestError, ids: Iterator[str | None], top_k: int) -> dict[str, Any]:
    service = service_of(request)
    if isinstance(end, Recognised):
        return classified(service, end, next(ids), top_k, UP) | {"problem": None}
    service.metrics.rejected(end.reason)
    told = problem(end, public_path(request.scope), exchange_of(request).request_id)
    return {"image_id": None, "heatmap_url": None, "predictions": None, "warnings": None, "problem": told}
