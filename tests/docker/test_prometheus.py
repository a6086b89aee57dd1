"""A real Prometheus takes the configuration, passes the alert tests, scrapes a service and fills every panel."""

from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
import yaml

from service.app import create_app
from service.settings import Settings
from tests.docker.files import DOCKER, alert_rules, panel_queries, settings
from tests.docker.programs import program
from tests.service.doubles import FakeEngine, loader, picture

PATIENCE_S = 60.0
VARIABLES = {"$instance": ".*", "$replica": ".*", "$window": "5s", "$__range": "60s"}
NEEDS_A_GPU = {"GPU memory A"}


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_configuration_and_rules() -> None:
    assert f"{len(alert_rules())} rules found" in promtool("check", "config", str(DOCKER / "prometheus.yml"))


def test_the_alerts_fire_when_they_should_and_not_otherwise() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(DOCKER / "alerts_test.yml"))


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """A running service around the fake engine; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(Settings(), loader(FakeEngine()))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield "{}:{}".format(*listener.getsockname())
    server.should_exit = True
    thread.join(PATIENCE_S)
    listener.close()


@pytest.fixture(scope="module")
def prometheus(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus with docker/prometheus.yml, but for the target's address and a shorter interval; a client for it."""
    folder = tmp_path_factory.mktemp("prometheus")
    config: dict[str, Any] = settings("prometheus.yml")
    config["global"] = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}
    config["rule_files"] = [str(DOCKER / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [service]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = "{}:{}".format(*probe.getsockname())
    with (
        _running(
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ),
        httpx.Client(base_url=f"http://{address}/api/v1", trust_env=False) as client,
    ):
        yield client


@contextlib.contextmanager
def _running(*arguments: str) -> Iterator[None]:
    """Prometheus, from the moment on at which it says that it is ready."""
    process = subprocess.Popen([program("prometheus"), *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log: list[str] = []
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
    answer = prometheus.get(path, params=parameters).json()
    assert answer["status"] == "success", (parameters, answer)
    return answer["data"]


def some_traffic(service: str) -> None:
    """Pictures, drawings and a refusal."""
    with httpx.Client(base_url=f"http://{service}", trust_env=False) as client:
        for value in range(3):
            assert client.post("/classify", content=picture(value)).status_code == 200
            assert client.post("/heatmap", content=picture(value)).status_code == 200
        assert client.post("/classify", content=b"no picture").status_code in (415, 422)


def has_numbers(result: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(series["value"][1])) for series in result)


def test_every_panel_of_the_dashboard_gets_data_from_a_running_service(service: str, prometheus: httpx.Client) -> None:
    pending = {title: query for title, query in panel_queries().items() if title not in NEEDS_A_GPU}
    assert len(pending) > 20
    for name, value in VARIABLES.items():
        pending = {title: query.replace(name, value) for title, query in pending.items()}
    deadline = time.monotonic() + PATIENCE_S
    while pending and time.monotonic() < deadline:
        some_traffic(service)
        pending = {
            title: query
            for title, query in pending.items()
            if not has_numbers(data(prometheus, "/query", query=query)["result"])
        }
    assert pending == {}


def test_a_gpu_panel_is_a_query_that_prometheus_understands(prometheus: httpx.Client) -> None:
    for title in NEEDS_A_GPU:
        query = panel_queries()[title].replace("$instance", ".*").replace("$replica", ".*")
        assert data(prometheus, "/query", query=query)["result"] == []


def test_the_choice_of_processes_lists_the_one_that_runs(service: str, prometheus: httpx.Client) -> None:
    assert data(prometheus, "/label/instance/values", **{"match[]": 'freqmerge_ready{job="freqmerge"}'}) == [service]


def test_prometheus_evaluates_every_rule_and_a_healthy_service_raises_none(prometheus: httpx.Client) -> None:
    deadline = time.monotonic() + PATIENCE_S
    rules: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        rules = [rule for group in data(prometheus, "/rules")["groups"] for rule in group["rules"]]
        if all(rule["health"] != "unknown" for rule in rules):
            break
    assert {rule["name"]: (rule["health"], rule["state"]) for rule in rules} == {
        rule["alert"]: ("ok", "inactive") for rule in alert_rules()
    }
