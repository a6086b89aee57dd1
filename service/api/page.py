"""The page at /, its parts, the samples and the interactive documentation: static files, nothing from elsewhere."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api.assets import Asset, read_assets
from service.errors import RouteNotFound

POLICY = (
    # Swagger UI has icons as data: URLs in its style sheet; the page shows drawings that it fetched as blob: URLs
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the two pages may load: only what this service serves, no inline script or style."""

CACHING = "no-cache"
"""Kept by the browser and asked about each time (304), so that no two versions ever meet in one page."""


def add_page_routes(app: FastAPI) -> None:
    """Adds the routes to the app; reads all files now."""
    app.state.assets = read_assets()
    for path in ("/", "/docs", "/static/{name}", "/samples/{name}"):
        app.add_api_route(path, asset, methods=["GET", "HEAD"], include_in_schema=False)


async def asset(request: Request) -> Response:
    """The file of this path; 304 without a body if the client has it already."""
    route: str = request.scope["route"].path
    path = route.format(**request.path_params)
    found: Asset | None = request.app.state.assets.get(path)
    if found is None:
        raise RouteNotFound(f"expected a file of the page, found {path[:200]}; see the page at /")
    headers = {"ETag": found.etag, "Cache-Control": CACHING}
    if _has(request.headers.get("if-none-match", ""), found.etag):
        return Response(status_code=304, headers=headers)
    if found.media_type.startswith("text/html"):
        headers["Content-Security-Policy"] = POLICY
    return Response(found.body, headers=headers, media_type=found.media_type)


def _has(if_none_match: str, etag: str) -> bool:
    given = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in given or "*" in given
