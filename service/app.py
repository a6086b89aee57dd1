"""Builds the web application; importing this file does nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Lifespan

from model._version import __version__
from service.api import openapi
from service.api.batch import batch_router
from service.api.classify import classify_router
from service.api.heatmap import heatmap_router
from service.api.oip.documents import BODIES
from service.api.oip.routes import oip_router
from service.api.page import page_router
from service.api.status import status_router
from service.errors import RequestError
from service.http import deadline
from service.http.auth import RequireKey, read_keys
from service.http.middleware import Observe
from service.http.prefix import Prefixed
from service.http.problems import answer_bad_parameter, answer_http_exception, answer_refusal
from service.observe.choice import open_traces
from service.observe.traces import Traces
from service.runtime.loading import ModelLoader, load_model
from service.runtime.service import Service
from service.settings import Settings

CORS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST"),
    "allow_headers": (
        "Authorization",
        "Content-Type",
        "Inference-Header-Content-Length",
        "X-API-Key",
        "X-Request-ID",
        "baggage",
        "traceparent",
        "tracestate",
        deadline.HEADER,
    ),
    "allow_private_network": True,
    "expose_headers": (
        "Inference-Header-Content-Length",
        "Retry-After",
        "Server-Timing",
        "WWW-Authenticate",
        "X-Request-ID",
    ),
    "max_age": 600,
}
"""What pages of the allowed origins may send and read; never cookies, for the service knows none."""


def create_app(settings: Settings, load: ModelLoader = load_model, *, start_warm: bool = False) -> FastAPI:
    """The application, not started; its `state.service` is the running `Service`.

    Start-up returns at once and loads the model in the background: `/live` answers meanwhile, `/ready`
    refuses. When `state.service.failure` is set, the model could not be loaded or the engine has died, and
    the host (`service.__main__`) should end the process. With `start_warm` start-up returns when the engine is warm,
    and fails with what kept it from that: for a host that counts a started app as a ready one.
    """
    service = Service(settings, load)
    traces = open_traces(settings)
    app = FastAPI(
        lifespan=_lifespan(service, traces, start_warm),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # Observe's work, and asked at every request
        title=openapi.TITLE,
        version=__version__,
        summary=openapi.SUMMARY,
        description=openapi.DESCRIPTION,
    )
    app.state.service = service
    _wrap(app, service, traces)
    app.add_exception_handler(RequestError, answer_refusal)
    app.add_exception_handler(RequestValidationError, answer_bad_parameter)
    app.add_exception_handler(HTTPException, answer_http_exception)
    for router in (classify_router, batch_router, heatmap_router, status_router, oip_router):
        app.router.routes.extend(router(service).routes)  # an included router would cost each request a second search
    app.router.routes.extend(page_router().routes)
    _document(app)
    return app


def _wrap(app: FastAPI, service: Service, traces: Traces | None) -> None:
    """Puts the middleware around the app, innermost first: what the operator did not ask for costs nothing."""
    settings = service.settings
    if keys := read_keys(settings):
        app.add_middleware(RequireKey, keys=keys)
    if origins := settings.allowed_origins:
        # outside the keys: a browser asks for permission without one, and a page may read why it was refused
        app.add_middleware(CORSMiddleware, allow_origins=origins, **CORS)
    app.add_middleware(Observe, service=service, traces=traces)
    if settings.root_path:
        app.add_middleware(Prefixed, root_path=settings.root_path)


def _lifespan(service: Service, traces: Traces | None, start_warm: bool) -> Lifespan[FastAPI]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if traces is not None:
            traces.open()
        await service.open()
        try:
            if start_warm:
                await service.warm()
            yield
        finally:
            await service.close()
            if traces is not None:
                await traces.close()

    return lifespan


def _document(app: FastAPI) -> None:
    """Replaces the generated OpenAPI document by ours, made once."""

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi.document(app, BODIES)
        return app.openapi_schema

    app.openapi = made  # type: ignore[method-assign]
