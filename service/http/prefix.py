"""The path prefix under which a proxy shows the service, whether the proxy strips it or passes it on."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class Prefixed:
    """Wraps an app; paths under `root_path` are those of the app, and so are paths without it.

    FastAPI's own parameter is deprecated, and uvicorn's assumes a proxy that strips.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "http":
            scope["root_path"] = self._root_path
        await self._app(scope, receive, send)


def route_path(scope: Scope) -> str:
    """The path as the routes know it, without the prefix."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    return path.removeprefix(prefix) if path == prefix or path.startswith(f"{prefix}/") else path


def public_path(scope: Scope) -> str:
    """The path as the client knows it, with the prefix."""
    return f"{scope.get('root_path', '')}{route_path(scope)}"
