"""uvicorn with our signals: not ready first, then drain, then exit code 0."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import socket
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from service.errors import StartupError
from service.runtime.service import Service
from service.settings import PREFIX, Settings

log = logging.getLogger(__name__)

BACKLOG = 2048

LAST_READ_S = 0.3
"""From the end of listening to the end of idle connections."""

OWN_FILES = 256
"""Open files that the service may need beside its connections: the model, worker processes, Redis."""

REQUIRED = ("uvloop", "httptools")
"""Optional for uvicorn, not for us: without them a request costs more than twice as much."""


class GracefulServer(uvicorn.Server):
    """A server that leaves in steps and ends when its service cannot go on.

    uvicorn would close the listener at the first signal and end by that signal.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._leave_at: float | None = None
        self._shutdown_logged = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: not ready, and the countdown starts. Second signal: now."""
        if self._leave_at is not None:
            self.should_exit = True
            return
        self._service.announce_shutdown()
        self._leave_at = time.monotonic() + self._service.settings.shutdown_delay_s

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop listening; uvicorn asks ten times a second."""
        if self._leave_at is not None:
            self._say_once()
            self.should_exit |= time.monotonic() >= self._leave_at
        if self._service.failure is not None:
            self.should_exit = True
        if self.should_exit:
            self._service.refuse_new()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening at once, and closes idle connections a moment later.

        What a connection has sent, and was not read yet, would be lost with it: here it becomes a request, which is
        answered, if only with 503.
        """
        await asyncio.sleep(0)  # whoever waits to be taken is taken now
        for listener in self.servers:
            listener.close()
        for opened in sockets or ():
            opened.close()
        await asyncio.sleep(LAST_READ_S)
        await super().shutdown(sockets)

    def _say_once(self) -> None:
        if not self._shutdown_logged:  # not in the signal handler: logging there may meet its own lock
            self._shutdown_logged = True
            log.info("shutting down", extra={"fields": {"delay_s": self._service.settings.shutdown_delay_s}})


def check_runtime() -> None:
    """Raises `StartupError` if uvloop or httptools is missing."""
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise StartupError(
            f"expected the packages {' and '.join(REQUIRED)}, found no {' and no '.join(missing)}; "
            "install the extra: pip install 'freqmerge[service]'"
        )


def allow_files(connections: int) -> None:
    """Lets the process have so many connections beside its own files; raises `StartupError` if it may not."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    wanted = connections + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise StartupError(
            f"expected a limit of {wanted:,} open files or more, for {connections:,} connections and {OWN_FILES} files "
            f"of the service, found {hard:,}; raise it (ulimit -n) or lower {PREFIX}MAX_CONNECTIONS"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listener(settings: Settings) -> socket.socket:
    """A listening socket; raises `StartupError` if the address, or files for its connections, cannot be had."""
    allow_files(settings.max_connections)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise StartupError(
            f"expected to listen on {settings.host} port {settings.port}, found: {error.strerror or error}; "
            "choose another address with --host and --port"
        ) from error


def configuration(app: ASGIApp, service: Service) -> uvicorn.Config:
    """How uvicorn is to serve this app."""
    from service.http.protocol import (
        guarded,  # here: it cannot be imported without httptools, which `check_runtime` misses
    )

    settings = service.settings
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=guarded(service),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )


def serve(app: ASGIApp, service: Service, opened: socket.socket) -> None:
    """Serves until a signal or a failure of the service, which it raises as `StartupError`."""
    host, port = opened.getsockname()[:2]
    log.info("listening", extra={"fields": {"url": f"http://{f'[{host}]' if ':' in host else host}:{port}"}})
    GracefulServer(configuration(app, service), service).run(sockets=[opened])
    if service.failure is not None:
        raise service.failure
