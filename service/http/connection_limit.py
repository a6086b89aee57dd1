"""What a connection gets that is one more than the service has, while every other one is owed an answer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Crowded
from service.http.middleware import Observe
from service.http.prefix import route_path
from service.http.problems import problem_response
from service.runtime.service import Service

PROBES = frozenset({"/live", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""What operators, and the machines that watch for them, have to reach then too."""


class ProbesOnly:
    """Wraps the app; whatever is not among `PROBES` is refused as `Crowded`, counted and logged as any refusal."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._refused = Observe(self._refuse, service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        scope["root_path"] = self._service.settings.root_path or ""
        known = route_path(scope) in PROBES
        await (self._app if known else self._refused)(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = Crowded.at(self._service.settings.max_connections)
        await problem_response(error, Request(scope))(scope, receive, send)
