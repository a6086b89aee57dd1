"""Docker and Compose by their command lines, and the service in its container over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.support.paths import ROOT

PROJECT = "freqmerge-test"
PATIENCE_S = 180.0


class Failed(Exception):
    """A promise that does not hold."""


def run(*words: str, check: bool = True, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command in the checkout; raises `Failed` with its last words where it fails."""
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | (env or {}), timeout=3600
    )
    if check and done.returncode:
        raise Failed(f"{' '.join(words)}: exit {done.returncode}: {done.stderr.strip()[-600:]}")
    return done


class Compose:
    """One project of these files; `port` is the service's on this host."""

    def __init__(self, files: Sequence[str | Path], port: int, prometheus_port: int) -> None:
        self._words = ["docker", "compose", "--project-directory", str(ROOT), "-p", PROJECT]
        for file in files:
            self._words += ["-f", str(file)]
        self._env = {"PORT": str(port), "PROMETHEUS_PORT": str(prometheus_port)}
        self.address = f"http://127.0.0.1:{port}"
        self.prometheus = f"http://127.0.0.1:{prometheus_port}"

    def __call__(self, *words: str, check: bool = True) -> str:
        """What `docker compose` prints."""
        return run(*self._words, *words, check=check, env=self._env).stdout

    def up(self, *services: str, scale: int = 1) -> float:
        """Starts them from images that are there; returns the seconds until the service's container is healthy."""
        started = time.monotonic()
        self("up", "--detach", "--no-build", "--pull", "never", "--scale", f"freqmerge={scale}", *services)
        for container in self.containers():
            until(lambda container=container: health(container) == "healthy", "a healthy container")
        return time.monotonic() - started

    def containers(self, service: str = "freqmerge") -> list[str]:
        """Ids of the service's containers."""
        return self("ps", "--all", "--quiet", service).split()

    def container(self) -> str:
        """The id of the only one."""
        [container] = self.containers()
        return container

    def down(self) -> None:
        """Ends everything and deletes its volumes."""
        self("down", "--volumes", "--remove-orphans", "--timeout", "45")


def inspect(container: str, template: str) -> str:
    """What docker says of a container."""
    return run("docker", "inspect", "--format", template, container).stdout.strip()


def health(container: str) -> str:
    """Such as starting or healthy."""
    return inspect(container, "{{.State.Health.Status}}")


def resident_mib(container: str) -> float:
    """Memory that the container uses, in MiB."""
    told = run("docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", container).stdout.split("/")[0].strip()
    for unit, factor in (("GiB", 1024.0), ("MiB", 1.0), ("KiB", 1 / 1024)):
        if told.endswith(unit):
            return float(told.removesuffix(unit)) * factor
    raise Failed(f"expected the memory of {container}, found {told!r}")


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> float:
    """Seconds until the condition holds; raises `Failed` when they are too many."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > patience_s:
            raise Failed(f"expected {what} within {patience_s:g} s, found none")
        time.sleep(0.1)
    return time.monotonic() - started


def answers(address: str) -> bool:
    """Whether the service is ready."""
    try:
        return httpx.get(f"{address}/ready", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def classify(address: str, picture: bytes) -> dict[str, Any]:
    """The answer for a JPEG; raises `Failed` unless it is 200."""
    response = httpx.post(f"{address}/classify", content=picture, headers={"Content-Type": "image/jpeg"}, timeout=30)
    if response.status_code != 200:
        raise Failed(f"POST /classify: expected 200, found {response.status_code}: {response.text[:300]}")
    found: dict[str, Any] = response.json()
    return found


def get(address: str) -> httpx.Response:
    """An answer with 200; raises `Failed` for any other."""
    response = httpx.get(address, timeout=30)
    if response.status_code != 200:
        raise Failed(f"GET {address}: expected 200, found {response.status_code}: {response.text[:300]}")
    return response


def expect(holds: bool, expected: str, found: object) -> None:
    """Raises `Failed` unless it holds."""
    if not holds:
        raise Failed(f"expected {expected}, found {json.dumps(found, default=str)[:300]}")
