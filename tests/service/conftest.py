"""An app around a fake engine, ready, on the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.runtime.loading import ModelLoader
from service.runtime.service import Service
from service.settings import Settings
from tests.support.doubles import FakeEngine, loader

DEADLINE_S = 20.0
"""No test waits longer for an event than this."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


class Running:
    """A started app and a client for it."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.app = app
        self.client = client
        self.service: Service = app.state.service


async def until(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds; lets the event loop turn meanwhile."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the engine thread changes it, which sets no event
            await asyncio.sleep(0)


async def entered(engine: FakeEngine) -> None:
    """Returns when the engine has taken up one more batch."""
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.to_thread(engine.entered.acquire)


@asynccontextmanager
async def running(load: ModelLoader, wait: bool = True, **settings: Any) -> AsyncIterator[Running]:
    """An app with these settings, ready unless `wait` is off, and a client whose address has a path prefix."""
    app = create_app(Settings(**settings), load)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        if wait:
            await until(lambda: app.state.service.ready)
        yield Running(app, client)


@pytest.fixture
async def start(engine: FakeEngine) -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Starts an app around the fake engine; settings as keywords. All are stopped after the test."""
    async with AsyncExitStack() as stack:

        async def begin(**settings: Any) -> Running:
            app = await stack.enter_async_context(running(loader(engine), **settings))
            stack.callback(engine.release)  # before the app closes, or it would wait for the engine
            return app

        yield begin


@pytest.fixture
async def client(start: Callable[..., Awaitable[Running]]) -> httpx.AsyncClient:
    """A client of an app with default settings."""
    return (await start()).client
