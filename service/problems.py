"""From an exception to the problem document that the client sees (RFC 9457)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

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
from service.exchange import exchange_of
from service.runtime import Service


def problem_response(error: RequestError, request: Request) -> Response:
    """The answer of a refused request; counts the refusal."""
    service: Service = request.app.state.service
    service.metrics.rejected(error.reason)
    body = problem(error, request.url.path[:200], exchange_of(request).request_id)
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
    faults = [_fault(item) for item in items]
    told = "; ".join(
        f"{fault['parameter']}: expected {fault['expected']}, found {fault['found']!r}" for fault in faults
    )
    return BadParameter(f"{told}; see the documentation at /docs", extra={"errors": faults})


def allowed_methods(routes: Iterable[BaseRoute], path: str) -> list[str]:
    """Every method that some route answers on this path, sorted."""
    methods = (getattr(route, "methods", None) or () for route in routes if getattr(route, "path", None) == path)
    return sorted({method for group in methods for method in group})


def _fault(item: Any) -> dict[str, Any]:
    expected = str(item["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    missing = item["type"] == "missing"
    return {
        "parameter": ".".join(str(part) for part in item["loc"][1:]) or "body",
        "expected": "a value" if missing else expected,
        "found": None if missing else str(item["input"])[:100],
    }


def _from_starlette(error: HTTPException, request: Request) -> RequestError:
    path, method = request.url.path[:200], request.method
    if error.status_code == RouteNotFound.status:
        return RouteNotFound(f"expected a route of the service, found {path}; /docs lists them all")
    if error.status_code == MethodNotAllowed.status:
        allowed = ", ".join(allowed_methods(request.app.routes, request.scope["path"]))
        return MethodNotAllowed(
            f"expected {allowed} on {path}, found {method}; /docs lists all routes",
            headers={"Allow": allowed},
        )
    return OtherStatus(error.status_code, str(error.detail), error.headers)
