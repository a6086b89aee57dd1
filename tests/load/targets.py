"""The servers of a comparison: how each is started, and what a picture looks like as a request to it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.settings import PREFIX
from tests.load.costed_engine import Cost
from tests.load.processes import Server
from tests.load.raw_http import multipart, request

HOST = "127.0.0.1"
ROOT = Path(__file__).parent.parent.parent

Command = Callable[[Path, int, Cost], list[str]]


@dataclass(frozen=True)
class Target:
    """One kind of server."""

    name: str
    label: str
    command: Command
    """From the Python of the peers, port and cost."""
    ready: str
    as_form: str | None = None
    """Name of the form field that carries the picture; None: the picture is the body."""
    extra: Mapping[str, str] = field(default_factory=dict)

    def start(self, python: Path, cost: Cost, more: Mapping[str, str] = {}, **settings: object) -> Server:
        """A server of this kind, ready; `settings` are the service's own, `more` is other environment.

        Raises `RuntimeError`.
        """
        port = free_port()
        own = {f"{PREFIX}{name.upper()}": str(value) for name, value in settings.items()}
        extra = {"PYTHONPATH": str(ROOT), **self.extra, **more, **own}
        server = Server(self.command(python, port, cost), port, self.ready, extra=extra)
        try:
            server.wait()
        except BaseException:
            server.stop()
            raise
        return server

    def request(self, picture: bytes) -> bytes:
        """The request that classifies one picture."""
        if self.as_form is None:
            return request("POST", "/classify", HOST, picture, {"Content-Type": "image/png"})
        body, media_type = multipart([picture], self.as_form)
        return request("POST", "/classify", HOST, body, {"Content-Type": media_type})


def _fake(python: Path, port: int, cost: Cost) -> list[str]:
    return [sys.executable, "-m", "tests.load.costed_server", "--port", str(port), *_cost(cost)]


def _real(python: Path, port: int, cost: Cost) -> list[str]:
    return [sys.executable, "-m", "service", "--port", str(port)]


def _peer(module: str) -> Command:
    def command(python: Path, port: int, cost: Cost) -> list[str]:
        return [str(python), "-m", f"tests.load.peers.{module}", "--port", str(port), *_cost(cost)]

    return command


def _bento(python: Path, port: int, cost: Cost) -> list[str]:
    arguments = {"base_ms": 1000 * cost.base_s, "per_image_ms": 1000 * cost.per_image_s}
    told = [part for name, value in arguments.items() for part in ("--arg", f"{name}={value:g}")]
    return [str(python.parent / "bentoml"), "serve", "tests.load.peers.bento:Classifier", "--port", str(port), *told]


def _cost(cost: Cost) -> list[str]:
    return ["--base-ms", f"{1000 * cost.base_s:g}", "--per-image-ms", f"{1000 * cost.per_image_s:g}"]


OURS = Target("freqmerge", "FreqMerge", _fake, "/ready")
SCALED = Target(
    "scaled",
    "FreqMerge on Ray Serve",
    lambda python, port, cost: [sys.executable, "-m", "tests.load.costed_ray_app", "--port", str(port), *_cost(cost)],
    "/ready",
    extra={"RAY_USAGE_STATS_ENABLED": "0"},
)
REAL = Target("freqmerge_real", "FreqMerge, shipped checkpoint", _real, "/ready")
PEERS = (
    Target("bare", "FastAPI route with a lock", _peer("bare"), "/health"),
    Target("litserve", "LitServe", _peer("lit"), "/health"),
    Target("bentoml", "BentoML", _bento, "/readyz", "images", {"BENTOML_DO_NOT_TRACK": "true"}),
    Target(
        "rayserve",
        "Ray Serve",
        _peer("rayserve"),
        "/classify",
        extra={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    ),
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((HOST, 0)) as opened:
        port: int = opened.getsockname()[1]
        return port
