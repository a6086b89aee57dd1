"""From an exception to the problem document that the client sees (RFC 9457).

Codes, sentences and the value of `Retry-After` are the exceptions' own: see `service.errors`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from service.errors import (
    PROBLEM_MEDIA_TYPE,
    InternalError,
    MethodNotAllowed,
    OtherStatus,
    RequestError,
    RouteNotFound,
    problem,
)
from service.http.exchange import exchange_of
from service.http.faults import MAX_FAULTS, bad_parameter, fault_of
from service.http.prefix import public_path, route_path

INFERENCE_PROTOCOL = "/v2/"
"""Routes that refuse as the Open Inference Protocol has it: `{"error": …}`."""

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


def problem_response(error: RequestError, request: Request) -> Response:
    """The answer of a refused request, whose exchange notes the refusal."""
    exchange = exchange_of(request)
    exchange.refusal = error.reason
    if (route_path(request.scope) + "/").startswith(INFERENCE_PROTOCOL):
        return Response(orjson.dumps({"error": error.detail}), error.status, error.headers, "application/json")
    body = problem(error, public_path(request.scope)[:200], exchange.request_id)
    return Response(orjson.dumps(body, default=str), error.status, error.headers, PROBLEM_MEDIA_TYPE)


def internal_error() -> InternalError:
    """What a client is told about a bug: nothing but where to find more."""
    return InternalError("expected an answer, found a bug of the service; give the operator the request id")


async def answer_refusal(request: Request, error: Exception) -> Response:
    """Handler of `RequestError`."""
    return problem_response(error if isinstance(error, RequestError) else internal_error(), request)


async def answer_bad_parameter(request: Request, error: Exception) -> Response:
    """Handler of FastAPI's validation errors."""
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    known = query_parameters(request.scope.get("route"))
    faults = [fault_of(item, known=known) for item in errors[:MAX_FAULTS]]
    return problem_response(bad_parameter(faults, "see the documentation at /docs"), request)


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Handler of what Starlette raises by itself: unknown routes and wrong methods."""
    if not isinstance(error, HTTPException):
        return problem_response(internal_error(), request)
    return problem_response(_from_starlette(error, request), request)


def query_parameters(route: BaseRoute | None) -> list[str]:
    """Names of the query parameters of a route whose endpoint declares them as a model."""
    fields = route.dependant.query_params if isinstance(route, APIRoute) else []
    models: list[Any] = [field.field_info.annotation for field in fields]
    return [name for model in models if issubclass(model, BaseModel) for name in model.model_fields]


def allowed_methods(routes: Iterable[BaseRoute], scope: Scope) -> list[str]:
    """Every method that some route answers on the path of this request, sorted."""
    tried = [(method, {**scope, "method": method}) for method in METHODS]
    return [
        method
        for method, method_scope in tried
        if any(route.matches(method_scope)[0] is Match.FULL for route in routes)
    ]


def _from_starlette(error: HTTPException, request: Request) -> RequestError:
    path, method = public_path(request.scope)[:200], request.method
    if error.status_code == RouteNotFound.status:
        return RouteNotFound(f"expected a route of the service, found {path}; /docs lists them all")
    if error.status_code == MethodNotAllowed.status:
        allowed = ", ".join(allowed_methods(request.app.routes, request.scope))
        return MethodNotAllowed(
            f"expected {allowed} on {path}, found {method}; /docs lists all routes",
            headers={"Allow": allowed},
        )
    return OtherStatus(error.status_code, str(error.detail), error.headers)
