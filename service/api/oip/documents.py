"""The protocol's routes in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from service import errors
from service.api.oip import schemas

Responses = dict[int | str, dict[str, Any]]

TAG = "Open Inference Protocol"

_BINARY = {"type": "string", "format": "binary"}


def _reference(body: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _answers(body: type[BaseModel]) -> Responses:
    return {200: {"description": "Success", "content": {"application/json": {"schema": _reference(body)}}}}


def refusals(*kinds: type[errors.RequestError]) -> Responses:
    """The errors that a route may answer with, one entry per status."""
    titles: dict[int, list[str]] = {}
    for kind in kinds:
        titles.setdefault(kind.status, []).append(kind.title)
    content = {"application/json": {"schema": _reference(schemas.InferenceError)}}
    return {status: {"description": "; ".join(titles[status]), "content": content} for status in sorted(titles)}


_UNREADY = refusals(errors.NotReady, errors.Draining)
_UNKNOWN = refusals(errors.UnknownModel)

SERVER = _answers(schemas.ServerMetadata)
LIVE = _answers(schemas.ServerLive)
READY = _answers(schemas.ServerReady) | _UNREADY
MODEL = _answers(schemas.ModelMetadata) | _UNKNOWN | _UNREADY
MODEL_READY = _answers(schemas.ModelReady) | _UNKNOWN | _UNREADY

INFERENCE: Responses = {
    200: {
        "description": "The outputs; some of them after the JSON part, if the request asks for that",
        "content": {
            "application/json": {"schema": _reference(schemas.InferenceResponse)},
            "application/octet-stream": {"schema": _BINARY},
        },
    },
    **refusals(
        errors.BadInference,
        errors.UnknownModel,
        errors.SlowBody,
        errors.TooLarge,
        errors.UnsupportedFormat,
        errors.EmptyBody,
        errors.Undecodable,
        errors.TooCostly,
        errors.BadParameter,
        errors.QueueFull,
        errors.EngineFailed,
        errors.InternalError,
        errors.NotReady,
        errors.Draining,
        errors.DeadlineExceeded,
    ),
}

INFERENCE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON, or JSON followed by the binary tensors, with the length of the JSON part in the header "
        "`Inference-Header-Content-Length`.",
        "content": {
            "application/json": {"schema": _reference(schemas.InferenceRequest)},
            "application/octet-stream": {"schema": _BINARY},
        },
    }
}
