"""The page at /, its parts, the samples and the interactive documentation: static files, nothing from elsewhere."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from service.errors import RouteNotFound, StartupError

HERE = Path(__file__).parents[1]

SWAGGER_PACKAGE = "fastapi_offline"
"""Carries Swagger UI (Apache-2.0), so that /docs needs no other host; only its files are used."""

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What is served by its name, and as what: the machine's own table of types may say otherwise, or nothing."""

PAGE = {
    "Content-Security-Policy": (
        # Swagger UI has icons as data: URLs in its style sheet; the page shows drawings that it fetched as blob: URLs
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
"""What the two pages may load: only what this service serves, no inline script or style."""

CACHING = {"Cache-Control": "no-cache"}
"""Kept by the browser and asked about each time (304), so that no two versions ever meet in one page."""


def page_router() -> APIRouter:
    """The routes; raises `StartupError` if the package with Swagger UI is missing."""
    router = APIRouter(include_in_schema=False)
    if find_spec(SWAGGER_PACKAGE) is None:
        raise StartupError(
            f"expected the package {SWAGGER_PACKAGE}, found none; install the extra: pip install 'freqmerge[service]'"
        )
    static = StaticFiles(directory=HERE / "static", packages=[(SWAGGER_PACKAGE, "static")])
    samples = StaticFiles(directory=HERE / "samples")

    @router.get("/")
    @router.head("/")
    async def index(request: Request) -> Response:
        return await _file(static, "index.html", request, PAGE)

    @router.get("/docs")
    @router.head("/docs")
    async def docs(request: Request) -> Response:
        return await _file(static, "docs.html", request, PAGE)

    @router.get("/static/{name}")
    @router.head("/static/{name}")
    async def static_file(request: Request, name: str) -> Response:
        return await _named(static, name, request)

    @router.get("/samples/{name}")
    @router.head("/samples/{name}")
    async def sample(request: Request, name: str) -> Response:
        return await _named(samples, name, request)

    return router


async def _named(files: StaticFiles, name: str, request: Request) -> Response:
    media_type = MEDIA_TYPES.get(Path(name).suffix)
    if media_type is None or not files.lookup_path(name)[1]:
        raise RouteNotFound(f"expected a file of the page, found {request.url.path[:200]}; see the page at /")
    return await _file(files, name, request, {"Content-Type": media_type})


async def _file(files: StaticFiles, name: str, request: Request, headers: dict[str, str]) -> Response:
    """The file; 304 without a body if the client has it already."""
    response = await files.get_response(name, request.scope)
    response.headers.update(CACHING if response.status_code == 304 else CACHING | headers)
    return response
