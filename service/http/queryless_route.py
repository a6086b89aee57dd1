"""Routes that hand a request without a query straight to their endpoint, by FastAPI's own hook for that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response


class QuerylessRoute(APIRoute):
    """A route with nothing to validate where the request has no query, as most have not.

    FastAPI's handler solves dependencies, also where there are none to solve (docs/decisions.md says what that costs).
    So all parameters of the endpoint but the request need defaults, and it returns a `Response`. With a query a request
    takes FastAPI's way; the documentation is FastAPI's in either case.
    """

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """The handler that `APIRoute` asks for when it is made."""
        solved = super().get_route_handler()
        endpoint: Callable[[Request], Awaitable[Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            return await (solved if request.scope["query_string"] else endpoint)(request)

        return handle
