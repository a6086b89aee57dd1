"""The parts of the OpenAPI document that the signatures of the routes cannot say: raw bodies, problems, keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import errors
from service.api.schemas import Problem
from service.http import deadline
from service.http.auth import OPEN

Responses = dict[int | str, dict[str, Any]]

TITLE = "FreqMerge"
SUMMARY = "Image classification with a token-merging Vision Transformer"
DESCRIPTION = (
    "Send a picture to `/classify`, get labels and the address of its frequency heatmap. Every refusal is a "
    "problem document (RFC 9457) that says what was expected, what was found and what to do."
)

_BINARY = {"type": "string", "format": "binary"}
_FORMATS = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/avif", "application/octet-stream")


def operation_id(route: APIRoute) -> str:
    """What generators of clients call the route: the name of its function."""
    return route.name


def _form(file: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": ["file"], "properties": {"file": file}, "additionalProperties": False}
    return {"multipart/form-data": {"schema": schema}}


PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One picture: JPEG, PNG, WebP, GIF (first frame), BMP or AVIF, as the body itself or as the "
        "form field `file`. Its first bytes decide what it is, not the declared type.",
        "content": _form(_BINARY) | {name: {"schema": _BINARY} for name in _FORMATS},
    }
}

FILES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Pictures as for /classify, each a form field `file` of its own. `GET /model` says how many "
        "and how large they may be together.",
        "content": _form({"type": "array", "items": _BINARY, "minItems": 1}),
    }
}

UPLOAD_PROBLEMS = (
    errors.EmptyBody,
    errors.UnsupportedFormat,
    errors.TooLarge,
    errors.Undecodable,
    errors.TooCostly,
    errors.BadForm,
    errors.SlowBody,
    errors.BadParameter,
    errors.NotReady,
    errors.Draining,
    errors.QueueFull,
    errors.DeadlineExceeded,
    errors.EngineFailed,
    errors.InternalError,
)
"""What a route that takes a picture may refuse with."""

BATCH_PROBLEMS = (
    errors.UnsupportedFormat,
    errors.TooLarge,
    errors.BadForm,
    errors.SlowBody,
    errors.BadParameter,
    errors.NotReady,
    errors.Draining,
    errors.QueueFull,
    errors.InternalError,
)
"""What refuses a batch as a whole; what is wrong with a file stands in its place in the answer."""

DRAWING_PROBLEMS = (
    errors.BadParameter,
    errors.NotReady,
    errors.QueueFull,
    errors.DeadlineExceeded,
    errors.InternalError,
)


KEYS: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "if the operator asks for a key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same key, other header"},
}

TIMEOUT: dict[str, Any] = {
    "parameters": [
        {
            "name": deadline.HEADER,
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999_999, "title": "Timeout"},
            "description": "milliseconds to wait for the answer, if they are fewer than the service would wait (504)",
        }
    ]
}
"""For the routes that run the model or draw."""

DRAWING_DESCRIPTION = "The drawing, or its numbers with `format=json`"
DRAWING: Responses = {200: {"content": {f"image/{name}": {"schema": _BINARY} for name in ("png", "webp", "jpeg")}}}

_FRAMEWORKS_OWN = ("HTTPValidationError", "ValidationError")


def titles(*kinds: type[errors.RequestError]) -> dict[int, str]:
    """What each status means among these errors, by status."""
    grouped: dict[int, list[str]] = {}
    for kind in kinds:
        grouped.setdefault(kind.status, []).append(kind.title)
    return {status: "; ".join(grouped[status]) for status in sorted(grouped)}


def problems(*kinds: type[errors.RequestError]) -> Responses:
    """The problem documents that a route may answer with, one entry per status."""
    content = {errors.PROBLEM_MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return {status: {"description": title, "content": content} for status, title in titles(*kinds).items()}


def document(app: FastAPI, bodies: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """The OpenAPI document; `bodies` are models of requests that routes read by themselves."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    _, shapes = models_json_schema(
        [(Problem, "serialization"), *((body, "validation") for body in bodies)],
        ref_template="#/components/schemas/{model}",
    )
    components = made["components"]
    components["securitySchemes"] = KEYS
    components["schemas"] |= shapes["$defs"]
    for name in _FRAMEWORKS_OWN:
        components["schemas"].pop(name, None)
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _complete(operation, needs_key=path not in OPEN)
    return made


def _complete(operation: dict[str, Any], needs_key: bool) -> None:
    """Adds what middleware and exception handlers do."""
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):  # FastAPI's own form, which we never send
        del responses["422"]
    if needs_key:
        unauthorized = problems(errors.Unauthorized)[errors.Unauthorized.status]
        responses.setdefault(str(errors.Unauthorized.status), unauthorized)
        operation["security"] = [{}, *({name: []} for name in KEYS)]
    operation["responses"] = dict(sorted(responses.items()))
