"""`python -m tests.load.costed_server`: the service as it is, around a model of known cost.

Every `FREQMERGE_*` setting counts as in `python -m service`. `--leak-bytes` keeps that much memory per request for
ever: the control that a soak has to catch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from service.__main__ import end
from service.app import create_app
from service.errors import StartupError
from service.http import server
from service.observe import log
from service.settings import Settings, read_settings
from tests.load.costed_engine import MAX_BATCH_SIZE, Cost, costed_loader


class Leak:
    """An app that keeps `size_bytes` of every request."""

    def __init__(self, app: ASGIApp, size_bytes: int) -> None:
        self._app = app
        self._size_bytes = size_bytes
        self._kept: list[bytearray] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "http":
            self._kept.append(bytearray(b"\1") * self._size_bytes)  # written, so that the memory is really taken
        await self._app(scope, receive, send)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, as that of `python -m service`."""
    options = _parser().parse_args(arguments)
    try:
        settings = settings_of(options)
        log.configure(settings.log_level)
        server.check_runtime()
        opened = server.listener(settings)
        app = create_app(settings, costed_loader(Cost(options.base_ms / 1000, options.per_image_ms / 1000)))
        app.state.service.workers.start()
        server.serve(Leak(app, options.leak_bytes) if options.leak_bytes else app, app.state.service, opened)
    except StartupError as error:
        sys.stderr.write(f"freqmerge: {error}\n")
        return error.exit_code
    return 0


def settings_of(options: argparse.Namespace) -> Settings:
    """The environment's settings; where it says nothing, batches of the fake engine's full size."""
    settings = read_settings(host=options.host, port=options.port)
    if "max_batch_size" in settings.model_fields_set:
        return settings
    return read_settings(host=options.host, port=options.port, max_batch_size=MAX_BATCH_SIZE)


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """The flags of every server around a model of known cost: its address and that cost."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", help="port to listen on")
    parser.add_argument("--base-ms", type=float, default=2.0, help="cost of a batch, whatever its size")
    parser.add_argument("--per-image-ms", type=float, default=0.1, help="cost of each image of a batch")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("tests.load.costed_server", __doc__)
    parser.add_argument("--leak-bytes", type=int, default=0, help="bytes to lose with every request")
    return parser


if __name__ == "__main__":
    end(main())
