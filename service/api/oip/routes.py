"""The protocol's routes: metadata, health, what Triton's clients ask for first, and inference over the same batcher as
/classify.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.oip import documents, metadata, outputs
from service.api.oip.request import Contract, Inference, asks_for_ready, parse
from service.api.oip.schemas import (
    IndexEntry,
    InferenceResponse,
    ModelConfiguration,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    Statistics,
)
from service.api.oip.statistics import statistics
from service.api.openapi import TIMEOUT, operation_id
from service.api.recognition import Recognised, recognise_many, run_pixels
from service.batching.waiting import Answer
from service.errors import RequestError, Unavailable, UnknownModel
from service.http.body import Upload, read_body
from service.http.deadline import Deadline
from service.http.exchange import exchange_of
from service.runtime.served import ServedModel
from service.runtime.service import Service
from service.settings import FORM_OVERHEAD_BYTES, Settings

HEADER_LENGTH = "Inference-Header-Content-Length"

MODEL = "/v2/models/{model_name}"
VERSION = MODEL + "/versions/{model_version}"

MAX_INDEX_BYTES = 4096
"""A request for the repository index holds one switch."""


def oip_router(service: Service) -> APIRouter:
    """The routes, those of a model with and without its version; all that are asked with GET answer HEAD as well."""
    router = APIRouter(tags=[documents.TAG], generate_unique_id_function=operation_id)
    _add_server(router, service)
    _add_model(router, service)
    _add_inference(router, service)
    return router


def _add_server(router: APIRouter, service: Service) -> None:
    """The routes about the server. They come first: the path of a model would take that of all statistics."""

    @router.get("/v2", responses=documents.KEY)
    @router.head("/v2", include_in_schema=False)
    async def server_metadata() -> ServerMetadata:
        """Name, version and extensions of the server."""
        return metadata.server_metadata()

    @router.get("/v2/health/live")
    @router.head("/v2/health/live", include_in_schema=False)
    async def server_live() -> ServerLive:
        """Whether the event loop turns, as /live."""
        return ServerLive(live=True)

    @router.get("/v2/health/ready", responses=documents.READY)
    @router.head("/v2/health/ready", include_in_schema=False)
    async def server_ready() -> ServerReady:
        """Whether inference is answered, as /ready."""
        service.check_ready()
        return ServerReady(ready=True)

    @router.get("/v2/models/stats", responses=documents.SERVER)
    @router.head("/v2/models/stats", include_in_schema=False)
    async def all_statistics() -> Statistics:
        """Counts and durations of the one model, from the metrics."""
        return await _statistics(service, service.loaded())

    @router.post("/v2/repository/index", responses=documents.INDEX, openapi_extra=documents.INDEX_BODY)
    async def repository_index(request: Request) -> list[IndexEntry]:
        """The one model and whether it answers; empty if only models that answer are asked for, and it does not."""
        entry = metadata.index_entry(service.loaded(), _obstacle(service))
        only_ready = asks_for_ready(await read_body(request, service.bodies, MAX_INDEX_BYTES))
        return [entry] if not only_ready or not entry.reason else []


def _add_model(router: APIRouter, service: Service) -> None:
    """The routes about the model."""

    @router.get(MODEL, responses=documents.MODEL)
    @router.head(MODEL, include_in_schema=False)
    async def model_metadata(model_name: str) -> ModelMetadata:
        """Inputs and outputs of the model."""
        return metadata.model_metadata(_served(service, model_name))

    @router.get(VERSION, responses=documents.MODEL)
    @router.head(VERSION, include_in_schema=False)
    async def model_metadata_of_version(model_name: str, model_version: str) -> ModelMetadata:
        """Inputs and outputs of a version of the model."""
        return metadata.model_metadata(_served(service, model_name, model_version))

    @router.get(f"{MODEL}/ready", responses=documents.MODEL)
    @router.head(f"{MODEL}/ready", include_in_schema=False)
    async def model_ready(model_name: str) -> ModelReady:
        """Whether the model answers."""
        return _ready(service, model_name)

    @router.get(f"{VERSION}/ready", responses=documents.MODEL)
    @router.head(f"{VERSION}/ready", include_in_schema=False)
    async def model_ready_of_version(model_name: str, model_version: str) -> ModelReady:
        """Whether a version of the model answers."""
        return _ready(service, model_name, model_version)

    @router.get(f"{MODEL}/config", responses=documents.MODEL)
    @router.head(f"{MODEL}/config", include_in_schema=False)
    async def model_configuration(model_name: str) -> ModelConfiguration:
        """The model as Triton's configuration describes one."""
        return metadata.model_configuration(_served(service, model_name), service.settings)

    @router.get(f"{VERSION}/config", responses=documents.MODEL)
    @router.head(f"{VERSION}/config", include_in_schema=False)
    async def model_configuration_of_version(model_name: str, model_version: str) -> ModelConfiguration:
        """A version of the model as Triton's configuration describes one."""
        return metadata.model_configuration(_served(service, model_name, model_version), service.settings)

    @router.get(f"{MODEL}/stats", responses=documents.MODEL)
    @router.head(f"{MODEL}/stats", include_in_schema=False)
    async def model_statistics(model_name: str) -> Statistics:
        """Counts and durations of the model, from the metrics."""
        return await _statistics(service, _served(service, model_name))

    @router.get(f"{VERSION}/stats", responses=documents.MODEL)
    @router.head(f"{VERSION}/stats", include_in_schema=False)
    async def model_statistics_of_version(model_name: str, model_version: str) -> Statistics:
        """Counts and durations of a version of the model, from the metrics."""
        return await _statistics(service, _served(service, model_name, model_version))


def _add_inference(router: APIRouter, service: Service) -> None:
    """The routes that run the model."""
    inference_extra = documents.INFERENCE_BODY | TIMEOUT

    @router.post(
        f"{MODEL}/infer",
        response_model=InferenceResponse,
        responses=documents.INFERENCE,
        openapi_extra=inference_extra,
    )
    async def infer(request: Request, model_name: str) -> Response:
        """The model's outputs for encoded pictures (input `image`) or decoded ones (input `pixels`)."""
        return await _infer(service, request, model_name)

    @router.post(
        f"{VERSION}/infer",
        response_model=InferenceResponse,
        responses=documents.INFERENCE,
        openapi_extra=inference_extra,
    )
    async def infer_of_version(request: Request, model_name: str, model_version: str) -> Response:
        """As without a version: there is one."""
        return await _infer(service, request, model_name, model_version)


def _served(service: Service, name: str, version: str = metadata.VERSION) -> ServedModel:
    """The model; raises `UnknownModel`, or `NotReady` while none is loaded."""
    served = service.loaded()
    if (name, version) == (served.manifest.name, metadata.VERSION):
        return served
    raise UnknownModel(
        f"expected model {served.manifest.name!r}, version {metadata.VERSION!r}, "
        f"found {name[:80]!r}, version {version[:80]!r}"
    )


def _ready(service: Service, name: str, version: str = metadata.VERSION) -> ModelReady:
    _served(service, name, version)
    service.check_ready()
    return ModelReady(name=name, ready=True)


def _obstacle(service: Service) -> RequestError | None:
    """What keeps the model from answering, None if nothing does."""
    try:
        service.check_ready()
    except Unavailable as obstacle:
        return obstacle
    return None


async def _statistics(service: Service, served: ServedModel) -> Statistics:
    """Of every replica, where there are several, as GET /metrics."""
    registry, last_batch_s = await service.gather(), service.metrics.last_batch_s
    return await asyncio.to_thread(lambda: statistics(registry.collect(), served.manifest.name, last_batch_s))


async def _infer(service: Service, request: Request, name: str, version: str = metadata.VERSION) -> Response:
    stages = exchange_of(request).stages
    deadline = Deadline.of(request, service.settings)
    served = _served(service, name, version)
    service.accepting()
    inference = await _read(service, request, served)
    answers = await _answers(service, request, inference, deadline)
    for answer in answers:
        service.metrics.predicted(int(answer.logits.argmax()))
    with stages.measure("encode"):
        names = served.manifest.class_names
        body, json_bytes = await service.pool.run(outputs.encode, served.manifest.name, inference, answers, names)
    if json_bytes is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={HEADER_LENGTH: str(json_bytes)}, media_type="application/octet-stream")


async def _read(service: Service, request: Request, served: ServedModel) -> Inference:
    """The request; raises `UnsupportedFormat`, `TooLarge`, `SlowBody`, `ClientGone` or `BadInference`."""
    settings = service.settings
    with exchange_of(request).stages.measure("read"):
        body = await read_body(request, service.bodies, settings.max_batch_upload_bytes)
        return await service.pool.run(parse, body, request.headers.get(HEADER_LENGTH), _contract(served, settings))


def _contract(served: ServedModel, settings: Settings) -> Contract:
    """What a request may hold: its JSON part has room for the largest picture in base64, in short lines."""
    return Contract(
        metadata.inputs(served),
        metadata.outputs(served),
        settings.max_images_per_request,
        settings.max_upload_bytes * 3 // 2 + FORM_OVERHEAD_BYTES,
    )


async def _answers(service: Service, request: Request, inference: Inference, deadline: Deadline) -> list[Answer]:
    """One answer per picture; raises the first refusal: the protocol has no answer for a part of a batch."""
    ends: list[Recognised | RequestError] | list[Answer | RequestError]
    if inference.pixels is None:
        ends = await recognise_many(service, request, [Upload(data) for data in inference.files], deadline)
    else:
        ends = await run_pixels(service, request, list(inference.pixels), deadline)
    answers: list[Answer] = []
    for index, end in enumerate(ends):
        if isinstance(end, RequestError):
            if len(ends) > 1:
                end.detail = f"picture {index} of {len(ends)}: {end.detail}"
            raise end
        answers.append(end if isinstance(end, Answer) else end.answer)
    return answers
