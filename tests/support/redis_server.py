"""A real redis-server on a Unix socket, that can be killed, hung and brought back."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.service.conftest import DEADLINE_S

PASSWORD = "open-sesame-77"


class RedisServer:
    """One server, which keeps nothing on a disk."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._socket = folder / "redis.sock"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"unix://{self._socket}"

    def url_with(self, password: str) -> str:
        """The address with a password."""
        return f"unix://:{password}@{self._socket}"

    def start(self) -> None:
        """Returns when it answers."""
        own = ("--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no")
        self._process = subprocess.Popen([_program(), *own, *self._options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + DEADLINE_S
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def kill(self) -> None:
        """Ends it at once, with all that it holds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """From now on connections open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *command: str | bytes) -> Any:
        """The answer to a command."""
        with redis.Redis.from_url(self.url_with(PASSWORD) if "--requirepass" in self._options else self.url) as client:
            return client.execute_command(*command)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except redis.ConnectionError:
            return False


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """A running server, which ends with the block."""
    with tempfile.TemporaryDirectory() as folder:  # a path short enough for a socket
        server = RedisServer(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _program() -> str:
    found = shutil.which("redis-server")
    if found is None:
        pytest.fail(
            "expected the program redis-server on the PATH, found none: install it (Debian, Ubuntu: apt install "
            "redis-server; macOS: brew install redis), or leave these tests out: "
            "make test PYTEST_ARGS='--ignore-glob tests/service/*_store.py'"
        )
    return found
