"""A real Prometheus beside a service: what it scrapes, and what the dashboard then shows."""

from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.docker.files import DOCKER, panel_queries, settings
from tests.support.programs import program

PATIENCE_S = 60.0
NEEDS_A_GPU = {"GPU memory A"}


@contextlib.contextmanager
def prometheus_on(
    target: str, folder: Path, interval: str = "250ms", log: list[str] | None = None
) -> Iterator[httpx.Client]:
    """Prometheus with docker/prometheus.yml, but for the target's address and a shorter interval; a client for it.

    Its log goes to the list `log`, line by line.
    """
    config: dict[str, Any] = settings("prometheus.yml")
    config["global"] = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(DOCKER / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = "{}:{}".format(*probe.getsockname())
    with (
        _running(
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            log=[] if log is None else log,
        ),
        httpx.Client(base_url=f"http://{address}/api/v1", trust_env=False) as client,
    ):
        yield client


@contextlib.contextmanager
def _running(*arguments: str, log: list[str]) -> Iterator[None]:
    """Prometheus, from the moment on at which it says that it is ready."""
    process = subprocess.Popen([program("prometheus"), *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    ready = threading.Event()

    def read(lines: Iterable[str]) -> None:
        for line in lines:  # to the end, or the process would block on a full pipe
            log.append(line)
            if "Server is ready" in line:
                ready.set()

    reader = threading.Thread(target=read, args=(process.stderr,))
    reader.start()
    try:
        assert ready.wait(PATIENCE_S), "".join(log)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        reader.join(PATIENCE_S)
        process.stderr.close()


def data(prometheus: httpx.Client, path: str, **parameters: str) -> Any:
    """What Prometheus answers to a request of its API."""
    answer = prometheus.get(path, params=parameters).json()
    assert answer["status"] == "success", (parameters, answer)
    return answer["data"]


def has_numbers(result: list[dict[str, Any]]) -> bool:
    """Whether a query's answer has a value that is a number."""
    return any(not math.isnan(float(series["value"][1])) for series in result)


def empty_panels(
    prometheus: httpx.Client, traffic: Callable[[], None], window: str = "5s", without: Collection[str] = ()
) -> dict[str, str]:
    """The dashboard's queries that stay without data while there is traffic; those of a GPU and `without` not asked."""
    pending = {title: query for title, query in panel_queries().items() if title not in NEEDS_A_GPU | set(without)}
    assert len(pending) > 20
    for name, value in {"$instance": ".*", "$replica": ".*", "$window": window, "$__range": "60s"}.items():
        pending = {title: query.replace(name, value) for title, query in pending.items()}
    deadline = time.monotonic() + PATIENCE_S
    while pending and time.monotonic() < deadline:
        traffic()
        pending = {
            title: query
            for title, query in pending.items()
            if not has_numbers(data(prometheus, "/query", query=query)["result"])
        }
    return pending
