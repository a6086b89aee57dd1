"""Routes whose plain requests skip the web framework's machinery, which costs more than our own work on them."""

from __future__ import annotations

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import Receive, Scope, Send


class DirectRoute(APIRoute):
    """A route that calls its endpoint by itself where nothing is to be validated: the request has no query.

    All parameters of its endpoint but the request need defaults, and it returns a `Response`. With a query the
    request takes FastAPI's way, and the documentation is FastAPI's in either case.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; what the endpoint raises goes to the app's exception handlers."""
        if scope["query_string"] or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
