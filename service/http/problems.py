"""From an exception to the problem document that the client sees (RFC 9457)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from service.errors import (
    PROBLEM_MEDIA_TYPE,
    BadParameter,
    InternalError,
    MethodNotAllowed,
    OtherStatus,
    RequestError,
    RouteNotFound,
    problem,
)
from service.http.exchange import exchange_of
from service.http.prefix import public_path, route_path
from service.http.wording import fault, told
from service.runtime.service import Service

INFERENCE_PROTOCOL = "/v2/"
"""Routes that refuse as the Open Inference Protocol has it: `{"error": …}`."""


def problem_response(error: RequestError, request: Request) -> Response:
    """The answer of a refused request; counts the refusal."""
    service: Service = request.app.state.service
    service.metrics.rejected(error.reason)
    if (route_path(request.scope) + "/").startswith(INFERENCE_PROTOCOL):
        return Response(orjson.dumps({"error": error.detail}), error.status, error.headers, "application/json")
    body = problem(error, public_path(request.scope)[:200], exchange_of(request).request_id)
    return Response(orjson.dumps(body, default=str), error.status, error.headers, PROBLEM_MEDIA_TYPE)


def internal_error() -> InternalError:
    """What a client is told about a bug: nothing but where to find more."""
    return InternalError("expected an answer, found a bug of the service; give the operator the request id")


async def answer_refusal(request: Request, error: Exception) -> Response:
    """Handler of `RequestError`."""
    return problem_response(error if isinstance(error, RequestError) else internal_error(), request)


async def answer_bad_parameter(request: Request, error: Exception) -> Response:
    """Handler of FastAPI's validation errors."""
    items = error.errors() if isinstance(error, RequestValidationError) else []
    return problem_response(bad_parameter(items), request)


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Handler of what Starlette raises by itself: unknown routes and wrong methods."""
    if not isinstance(error, HTTPException):
        return problem_response(internal_error(), request)
    return problem_response(_from_starlette(error, request), request)


def bad_parameter(items: Iterable[Any]) -> BadParameter:
    """One error for all bad parameters: each with what was expected and found."""
    faults = [fault(item) for item in items]
    return BadParameter(f"{told(faults)}; see the documentation at /docs", extra={"errors": faults})


def allowed_methods(routes: Iterable[BaseRoute], path: str) -> list[str]:
    """Every method that some route answers on this path, sorted."""
    matching = (route for route in routes if isinstance(route, Route) and route.path_regex.match(path))
    return sorted({method for route in matching for method in route.methods or ()})


def _from_starlette(error: HTTPException, request: Request) -> RequestError:
    path, method = public_path(request.scope)[:200], request.method
    if error.status_code == RouteNotFound.status:
        return RouteNotFound(f"expected a route of the service, found {path}; /docs lists them all")
    if error.status_code == MethodNotAllowed.status:
        allowed = ", ".join(allowed_methods(request.app.routes, route_path(request.scope)))
        return MethodNotAllowed(
            f"expected {allowed} on {path}, found {method}; /docs lists all routes",
            headers={"Allow": allowed},
        )
    return OtherStatus(error.status_code, str(error.detail), error.headers)
