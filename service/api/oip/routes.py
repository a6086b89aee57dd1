"""The protocol's routes: server and model metadata, health, and inference over the same batcher as /classify."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api import pipeline
from service.api.answers import json_answer
from service.api.oip import answer, documents, metadata
from service.api.oip.request import Contract, Inference, parse
from service.api.pipeline import Recognised, service_of
from service.batching.waiting import Answer
from service.errors import RequestError, UnknownModel, UnsupportedFormat
from service.http.body import read_body
from service.http.deadline import Deadline
from service.http.exchange import exchange_of
from service.runtime.loading import ServedModel
from service.settings import FORM_OVERHEAD_BYTES, Settings

HEADER_LENGTH = "Inference-Header-Content-Length"

Endpoint = Callable[..., Awaitable[Response]]


def add_oip_routes(app: FastAPI) -> None:
    """Adds the routes to the app; those of a model with and without its version."""
    _get(app, "/v2", server_metadata, documents.SERVER)
    _get(app, "/v2/health/live", server_live, documents.LIVE)
    _get(app, "/v2/health/ready", server_ready, documents.READY)
    model, versioned = "/v2/models/{model_name}", "/v2/models/{model_name}/versions/{model_version}"
    _get(app, model, model_metadata, documents.MODEL)
    _get(app, versioned, model_metadata_of_version, documents.MODEL)
    _get(app, f"{model}/ready", model_ready, documents.MODEL_READY)
    _get(app, f"{versioned}/ready", model_ready_of_version, documents.MODEL_READY)
    for path, endpoint in ((model, infer), (versioned, infer_of_version)):
        app.add_api_route(
            f"{path}/infer",
            endpoint,
            methods=["POST"],
            tags=[documents.TAG],
            responses=documents.INFERENCE,
            openapi_extra=documents.INFERENCE_BODY,
        )


async def server_metadata(request: Request) -> Response:
    """Name, version and extensions of the server."""
    return json_answer(metadata.server_metadata())


async def server_live(request: Request) -> Response:
    """Whether the event loop turns, as /live."""
    return json_answer({"live": True})


async def server_ready(request: Request) -> Response:
    """Whether inference is answered, as /ready."""
    service_of(request).check_ready()
    return json_answer({"ready": True})


async def model_metadata(request: Request, model_name: str) -> Response:
    """Inputs and outputs of the model."""
    return json_answer(metadata.model_metadata(_served(request, model_name)))


async def model_metadata_of_version(request: Request, model_name: str, model_version: str) -> Response:
    """Inputs and outputs of a version of the model."""
    return json_answer(metadata.model_metadata(_served(request, model_name, model_version)))


async def model_ready(request: Request, model_name: str) -> Response:
    """Whether the model answers."""
    return _ready(request, model_name)


async def model_ready_of_version(request: Request, model_name: str, model_version: str) -> Response:
    """Whether a version of the model answers."""
    return _ready(request, model_name, model_version)


async def infer(request: Request, model_name: str) -> Response:
    """The model's outputs for encoded pictures (input `image`) or decoded ones (input `pixels`)."""
    return await _infer(request, model_name)


async def infer_of_version(request: Request, model_name: str, model_version: str) -> Response:
    """As without a version: there is one."""
    return await _infer(request, model_name, model_version)


def _served(request: Request, name: str, version: str = metadata.VERSION) -> ServedModel:
    """The model; raises `UnknownModel`, or `NotReady` while none is loaded."""
    served = service_of(request).loaded()
    if (name, version) == (served.manifest.name, metadata.VERSION):
        return served
    raise UnknownModel(
        f"expected model {served.manifest.name!r}, version {metadata.VERSION!r}, "
        f"found {name[:80]!r}, version {version[:80]!r}"
    )


def _ready(request: Request, name: str, version: str = metadata.VERSION) -> Response:
    _served(request, name, version)
    service_of(request).check_ready()
    return json_answer({"name": name, "ready": True})


async def _infer(request: Request, name: str, version: str = metadata.VERSION) -> Response:
    service, stages = service_of(request), exchange_of(request).stages
    deadline = Deadline.of(request, service.settings)
    served = _served(request, name, version)
    service.accepting()
    inference = await _read(request, served)
    answers = await _answers(request, inference, deadline)
    for found in answers:
        service.metrics.predicted(int(found.logits.argmax()))
    with stages.measure("encode"):
        names = served.manifest.class_names
        body, json_bytes = await service.pool.run(answer.encode, served.manifest.name, inference, answers, names)
    if json_bytes is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={HEADER_LENGTH: str(json_bytes)}, media_type="application/octet-stream")


async def _read(request: Request, served: ServedModel) -> Inference:
    """The request; raises `UnsupportedFormat`, `TooLarge`, `SlowBody`, `ClientGone` or `BadInference`."""
    service, stages = service_of(request), exchange_of(request).stages
    settings = service.settings
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedFormat(f"expected a body without Content-Encoding, found {encoding[:40]!r}; send it as it is")
    with stages.measure("read"):
        body = await read_body(request, settings.max_batch_upload_bytes, settings.body_timeout_s)
        return await service.pool.run(parse, body, request.headers.get(HEADER_LENGTH), _contract(served, settings))


def _contract(served: ServedModel, settings: Settings) -> Contract:
    """What a request may hold: its JSON part has room for the largest picture in base64."""
    return Contract(
        metadata.inputs(served),
        metadata.outputs(served),
        settings.max_images_per_request,
        settings.max_upload_bytes * 4 // 3 + FORM_OVERHEAD_BYTES,
    )


async def _answers(request: Request, inference: Inference, deadline: Deadline) -> list[Answer]:
    """One answer per picture; raises the first refusal: the protocol has no answer for a part of a batch."""
    ends: list[Recognised | RequestError] | list[Answer | RequestError]
    if inference.pixels is None:
        ends = await pipeline.recognise_many(request, inference.files, deadline)
    else:
        ends = await pipeline.run_pixels(request, list(inference.pixels), deadline)
    answers: list[Answer] = []
    for index, end in enumerate(ends):
        if isinstance(end, RequestError):
            if len(ends) > 1:
                end.detail = f"picture {index} of {len(ends)}: {end.detail}"
            raise end
        answers.append(end if isinstance(end, Answer) else end.answer)
    return answers


def _get(app: FastAPI, path: str, endpoint: Endpoint, responses: documents.Responses) -> None:
    app.add_api_route(path, endpoint, methods=["GET"], tags=[documents.TAG], responses=responses)
    app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
