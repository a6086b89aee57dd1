"""A real Prometheus takes the configuration, passes the alert tests, scrapes a service and fills every panel."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.docker.files import DOCKER, ROOT, alert_rules, compose, panel_queries
from tests.docker.scraping import NEEDS_A_GPU, PATIENCE_S, data, empty_panels, has_numbers, prometheus_on
from tests.support.doubles import FakeEngine, loader, picture
from tests.support.live import serving
from tests.support.programs import program


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
    with serving(create_app(Settings(), loader(FakeEngine()))) as url:
        yield url.removeprefix("http://")


@pytest.fixture(scope="module")
def prometheus(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a Prometheus that scrapes the service."""
    with prometheus_on(service, tmp_path_factory.mktemp("prometheus")) as client:
        yield client


def some_traffic(service: str) -> None:
    """Pictures, drawings and a refusal."""
    with httpx.Client(base_url=f"http://{service}", trust_env=False) as client:
        for value in range(3):
            assert client.post("/classify", content=picture(value)).status_code == 200
            assert client.post("/heatmap", content=picture(value)).status_code == 200
        assert client.post("/classify", content=b"no picture").status_code in (415, 422)


def test_every_panel_of_the_dashboard_gets_data_from_a_running_service(service: str, prometheus: httpx.Client) -> None:
    assert empty_panels(prometheus, lambda: some_traffic(service)) == {}


def test_a_gpu_panel_is_a_query_that_prometheus_understands(prometheus: httpx.Client) -> None:
    for title in NEEDS_A_GPU:
        query = panel_queries()[title].replace("$instance", ".*").replace("$replica", ".*")
        assert data(prometheus, "/query", query=query)["result"] == []


def test_the_choice_of_processes_lists_the_one_that_runs(service: str, prometheus: httpx.Client) -> None:
    assert data(prometheus, "/label/instance/values", **{"match[]": 'freqmerge_ready{job="freqmerge"}'}) == [service]


def test_services_of_a_file_of_targets_are_scraped_beside_the_first(service: str, tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    with serving(create_app(Settings(), loader(FakeEngine()))) as url:
        other = url.removeprefix("http://")
        told = (DOCKER / "targets/gpus.yml").read_text(encoding="utf-8")
        (tmp_path / "targets/gpus.yml").write_text(told.replace("freqmerge-1:8000", other), encoding="utf-8")
        with prometheus_on(service, tmp_path) as prometheus:
            deadline = time.monotonic() + PATIENCE_S
            ready: dict[str, str] = {}
            while len(ready) < 2 and time.monotonic() < deadline:
                found = data(prometheus, "/query", query='freqmerge_ready{job="freqmerge"}')["result"]
                ready = {one["metric"]["instance"]: one["value"][1] for one in found}
    assert ready == {service: "1", other: "1"}


def test_prometheus_finds_every_file_that_compose_mounts_and_logs_no_error(service: str, tmp_path: Path) -> None:
    for volume in compose("docker-compose.yml")["services"]["prometheus"]["volumes"]:
        source, place, *_ = volume.split(":")
        if source.startswith("./docker/targets/"):
            (tmp_path / "targets").mkdir()
            shutil.copy(ROOT / source, tmp_path / Path(place).relative_to("/etc/prometheus"))
    log: list[str] = []
    with prometheus_on(service, tmp_path, log=log) as prometheus:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not has_numbers(data(prometheus, "/query", query="up")["result"]):
            pass
        assert [target["labels"]["instance"] for target in data(prometheus, "/targets")["activeTargets"]] == [service]
        assert [line for line in log if re.search(r"level=(error|warn)", line, re.IGNORECASE)] == []


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
