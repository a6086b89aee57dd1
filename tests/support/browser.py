"""The app on a real socket for a real browser, and Debian's Chromium to look at it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import create_app
from service.runtime.loading import ModelLoader, load_model
from service.runtime.service import Service
from service.settings import Settings

PATIENCE_S = 45.0
"""No test waits longer for an event than this."""

PATIENCE_MS = 1000 * PATIENCE_S


class Site:
    """A running app and its address, which ends with a slash."""

    def __init__(self, app: FastAPI, url: str) -> None:
        self.app = app
        self.url = url
        self.service: Service = app.state.service


class Stripped:
    """A proxy that shows an app under a prefix and nothing else, and strips the prefix before it passes requests on."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            scope["path"] = path.removeprefix(self._prefix) if path.startswith(f"{self._prefix}/") else "/outside"
            scope["raw_path"] = scope["path"].encode()
        await self._app(scope, receive, send)


@contextmanager
def site(load: ModelLoader = load_model, prefix: str = "", wait: bool = True, **settings: Any) -> Iterator[Site]:
    """An app on a free port, in a thread of its own, ready unless `wait` is off."""
    app = create_app(Settings(**{"engine": "eager", **settings}), load)
    outside = Stripped(app, prefix) if prefix else app
    with socket.create_server(("127.0.0.1", 0)) as opened:
        server = uvicorn.Server(uvicorn.Config(outside, log_config=None, access_log=False, ws="none", lifespan="off"))
        started = threading.Event()

        async def serve() -> None:
            async with app.router.lifespan_context(app):
                started.set()
                await server.serve(sockets=[opened])

        thread = threading.Thread(target=lambda: server.config.get_loop_factory()().run_until_complete(serve()))
        thread.start()
        try:
            assert started.wait(PATIENCE_S)
            found = Site(app, f"http://127.0.0.1:{opened.getsockname()[1]}{prefix}/")
            if wait:
                until(lambda: found.service.ready)
            yield found
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


def until(condition: Any) -> None:
    """Returns when the condition holds, which another thread changes without an event."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Chromium as the system has it; nothing is downloaded."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "expected Chromium, found none; install it: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--disable-gpu", "--no-first-run"])
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """Everything that a page says on its console, and every request that leaves the service's own origin."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self._url = site.url
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._request)

    def refused(self, status: int) -> None:
        """Forgets the browser's own note that an answer had this status; fails if there is none."""
        note = f"the server responded with a status of {status} "
        assert [text for text in self.complaints if note in text], self.complaints
        self.complaints = [text for text in self.complaints if note not in text]

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self._url, "blob:", "data:")):
            self.foreign.append(request.url)


@contextmanager
def opened(browser: Browser, site: Site, path: str = "", **context: Any) -> Iterator[Watched]:
    """A page in a browser profile of its own."""
    with contextlib.closing(browser.new_context(**context)) as profile:
        profile.set_default_timeout(PATIENCE_MS)
        page = profile.new_page()
        watched = Watched(page, site)
        page.goto(site.url + path)
        yield watched
