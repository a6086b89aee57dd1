"""An app on a real socket, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from service.http.server import configuration
from tests.service.conftest import DEADLINE_S


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The URL of the app, which is ready and ends with the block."""
    server = uvicorn.Server(configuration(app, app.state.service))
    with socket.create_server(("127.0.0.1", 0)) as opened:
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not app.state.service.ready:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield f"http://127.0.0.1:{opened.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(DEADLINE_S)
