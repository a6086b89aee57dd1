"""The parts of the OpenAPI document that the signatures of the routes cannot say.

Answers are built as bytes on the hot path, so FastAPI does not see their shape: they refer to the schemas of
`service.schemas`, which `document` adds.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import errors
from service.schemas import DOCUMENTED, Problem

Responses = dict[int | str, dict[str, Any]]

TITLE = "FreqMerge"
SUMMARY = "Image classification with a token-merging Vision Transformer"
DESCRIPTION = (
    "Send a picture to `/classify`, get labels and the address of its frequency heatmap. Every refusal is a "
    "problem document (RFC 9457) that says what was expected, what was found and what to do."
)

_BINARY = {"type": "string", "format": "binary"}
_FORMATS = ("image/jpeg", "image/png", "image/webp", "image/gif", "application/octet-stream")
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}

PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One picture: JPEG, PNG, WebP or GIF (first frame), as the body itself or as the form "
        "field `file`. Its first bytes decide what it is, not the declared type.",
        "content": {
            "multipart/form-data": {"schema": _FORM},
            **{name: {"schema": _BINARY} for name in _FORMATS},
        },
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

DRAWING_PROBLEMS = (
    errors.BadParameter,
    errors.NotReady,
    errors.QueueFull,
    errors.DeadlineExceeded,
    errors.InternalError,
)


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
        [(shape, "serialization") for shape in DOCUMENTED], ref_template="#/components/schemas/{model}"
    )
    made.setdefault("components", {}).setdefault("schemas", {}).update(shapes["$defs"])
    return made


def _reference(body: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _drawing() -> Responses:
    images = {f"image/{name}": {"schema": _BINARY} for name in ("png", "webp", "jpeg")}
    numbers = {"application/json": {"schema": {"$ref": "#/components/schemas/HeatmapData"}}}
    return {200: {"description": "The drawing, or its numbers with `format=json`", "content": images | numbers}}


DRAWING: Responses = _drawing()
