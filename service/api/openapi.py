"""The parts of the OpenAPI document that the signatures of the routes cannot say.

Answers are built as bytes on the hot path, so FastAPI does not see their shape: they refer to the schemas of
`service.api.schemas`, which `document` adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import errors
from service.api.oip import documents
from service.api.oip import schemas as oip
from service.api.schemas import DOCUMENTED, Problem
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
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}


def _several(item: dict[str, str]) -> dict[str, Any]:
    files = {"type": "array", "items": item, "minItems": 1}
    return {"type": "object", "required": ["file"], "properties": {"file": files}}


PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One picture: JPEG, PNG, WebP, GIF (first frame), BMP or AVIF, as the body itself or as the "
        "form field `file`. Its first bytes decide what it is, not the declared type.",
        "content": {
            "multipart/form-data": {"schema": _FORM},
            **{name: {"schema": _BINARY} for name in _FORMATS},
        },
    }
}

FILES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Pictures as for /classify, each a form field `file` of its own. `GET /model` says how many "
        "and how large they may be together.",
        "content": {"multipart/form-data": {"schema": _several(_BINARY)}},
    }
}

METRICS: Responses = {
    200: {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}},
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
    "name": deadline.HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999_999, "title": "Timeout"},
    "description": "milliseconds to wait for the answer, if they are fewer than the service would wait (504)",
}

_FRAMEWORKS_OWN = ("HTTPValidationError", "ValidationError")


def answers(body: type[BaseModel]) -> Responses:
    """The success of a route that answers with JSON."""
    return {200: {"description": "Success", "content": {"application/json": {"schema": _reference(body)}}}}


def problems(*kinds: type[errors.RequestError]) -> Responses:
    """The problem documents that a route may answer with, one entry per status."""
    titles: dict[int, list[str]] = {}
    for kind in kinds:
        titles.setdefault(kind.status, []).append(kind.title)
    content = {errors.PROBLEM_MEDIA_TYPE: {"schema": _reference(Problem)}}
    return {status: {"description": "; ".join(titles[status]), "content": content} for status in sorted(titles)}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas that our answers refer to."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    _, shapes = models_json_schema(
        [
            *((shape, "serialization") for shape in (*DOCUMENTED, *oip.DOCUMENTED)),
            (oip.InferenceRequest, "validation"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    components = made.setdefault("components", {})
    components["securitySchemes"] = KEYS
    components["schemas"] = {
        name: shape for name, shape in components.get("schemas", {}).items() if name not in _FRAMEWORKS_OWN
    } | shapes["$defs"]
    for path, operations in made["paths"].items():
        for operation in operations.values():
            refusals = documents.refusals if documents.TAG in operation["tags"] else problems
            _complete(operation, None if path in OPEN else refusals)
    return made


def _complete(operation: dict[str, Any], refusal: Callable[[type[errors.RequestError]], Responses] | None) -> None:
    """Adds what middleware and exception handlers do: 401 as `refusal` words it, on a route that needs a key."""
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):  # FastAPI's own form, which we never send
        del responses["422"]
    if refusal is not None:
        responses |= {str(code): answer for code, answer in refusal(errors.Unauthorized).items()}
        operation["security"] = [{}, *({name: []} for name in KEYS)]
    operation["responses"] = dict(sorted(responses.items()))
    if str(errors.QueueFull.status) in responses:  # the routes that run the model or draw
        operation.setdefault("parameters", []).append(TIMEOUT)


def _reference(body: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _drawing() -> Responses:
    images = {f"image/{name}": {"schema": _BINARY} for name in ("png", "webp", "jpeg")}
    numbers = {"application/json": {"schema": {"$ref": "#/components/schemas/HeatmapData"}}}
    return {200: {"description": "The drawing, or its numbers with `format=json`", "content": images | numbers}}


DRAWING: Responses = _drawing()
