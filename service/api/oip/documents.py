"""What the OpenAPI document says of the protocol's routes beside their signatures."""

from __future__ import annotations

from typing import Any

from service import errors
from service.api.oip.schemas import IndexRequest, InferenceError, InferenceRequest
from service.api.openapi import Responses, titles

TAG = "Open Inference Protocol"

BODIES = (InferenceRequest, IndexRequest)
"""Models of request bodies that the routes read by themselves."""

_BINARY = {"type": "string", "format": "binary"}


def refusals(*kinds: type[errors.RequestError]) -> Responses:
    """The errors that a route may answer with, one entry per status."""
    return {status: {"description": title, "model": InferenceError} for status, title in titles(*kinds).items()}


READY = refusals(errors.NotReady, errors.Draining)
KEY = refusals(errors.Unauthorized)
SERVER = READY | KEY
MODEL = SERVER | refusals(errors.UnknownModel)
INDEX = SERVER | refusals(errors.BadInference, errors.SlowBody, errors.TooLarge, errors.QueueFull)

INFERENCE: Responses = {
    200: {
        "description": "The outputs; some of them after the JSON part, if the request asks for that",
        "content": {"application/octet-stream": {"schema": _BINARY}},
    },
    **refusals(
        errors.BadInference,
        errors.Unauthorized,
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
            "application/json": {"schema": {"$ref": f"#/components/schemas/{InferenceRequest.__name__}"}},
            "application/octet-stream": {"schema": _BINARY},
        },
    }
}

INDEX_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{IndexRequest.__name__}"}}},
    }
}
