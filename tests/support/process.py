"""A server process on a free port, with its log as parsed lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import httpx

from tests.support.paths import ROOT

PATIENCE_S = 120
"""Importing the tensor library alone takes ten seconds on a busy machine."""

READ_ONLY = ("sh", "-c", 'ulimit -f 0 && exec "$@"', "sh")
"""Runs a command that cannot write a byte into any file, as on a read-only or a full disk."""


FOREIGN = ("FREQMERGE_", "OTEL_", "TORCHINDUCTOR_")
"""Variables that would settle something for the server. torch, once imported here, sets one that names a folder."""


class Process:
    """`python -m MODULE` with these arguments and settings; the engine is the one that starts at once."""

    def __init__(self, *arguments: str, module: str = "service", **settings: object) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        chosen = {_variable(name): str(value) for name, value in settings.items()}
        self.started = time.monotonic()
        self.popen = subprocess.Popen(
            [*READ_ONLY, sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=clean | {"FREQMERGE_THREADS": "1", "FREQMERGE_ENGINE": "eager"} | chosen,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    @property
    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def told(self, message: str, **fields: object) -> dict[str, object]:
        """The first log line with that message and these fields, waited for."""

        def found() -> dict[str, object] | None:
            wanted = {"message": message, **fields}
            return next((line for line in self.log if wanted.items() <= line.items()), None)

        with self._news:
            assert self._news.wait_for(lambda: found() or self.popen.poll() is not None, PATIENCE_S)
            line = found()
        assert line is not None, "".join(self.lines)
        return line

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=str(self.told("listening")["url"]), timeout=PATIENCE_S)

    def ended(self) -> tuple[int, str]:
        """Exit code and standard error."""
        code = self.popen.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.popen.stderr is not None
        self.popen.stderr.close()
        return code, "".join(self.lines)

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.ended()


def _variable(name: str) -> str:
    """The environment variable of a setting; OpenTelemetry's own are given as they are."""
    return name if name.startswith("OTEL_") else f"FREQMERGE_{name.upper()}"
