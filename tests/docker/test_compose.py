"""The Compose files: valid, hardened, and in agreement with the image, the service and the monitoring."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from service.settings import Settings
from tests.docker.files import DOCKER, ROOT, alert_rules, compose, dashboard, resets, settings, stages, without_resets
from tests.support.redis_server import redis_server

FILES = (
    "docker-compose.yml",
    "docker/compose.cpu.yml",
    "docker/compose.redis.yml",
    "docker/compose.gpus.yml",
    "docker/compose.train.yml",
)
FORCED_END_S = 10
"""How long a shutdown waits for an engine that hangs, after the drain."""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = compose("docker-compose.yml")["services"]
    return found


def environment(stage: str) -> dict[str, str]:
    lines = [line.removeprefix("ENV ") for line in stages()[stage] if line.startswith("ENV ")]
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


@pytest.mark.parametrize("name", FILES)
def test_the_file_passes_the_compose_specifications_schema(name: str, tmp_path: Path) -> None:
    plain = tmp_path / "compose.json"  # the checker knows no tags
    plain.write_text(json.dumps(without_resets(compose(name))), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(plain)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_plain_up_reserves_a_gpu_and_the_cpu_file_takes_exactly_that_back(services: dict[str, Any]) -> None:
    assert services["freqmerge"]["deploy"]["resources"]["reservations"] == {
        "devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    }
    assert list(resets(compose("docker/compose.cpu.yml"))) == [
        ("services", "freqmerge", "deploy", "resources", "reservations")
    ]


def test_every_service_of_a_host_with_several_gpus_has_one_of_its_own(services: dict[str, Any]) -> None:
    several = compose("docker/compose.gpus.yml")["services"]
    del several["prometheus"]
    reserved = [service["deploy"]["resources"]["reservations"]["devices"] for service in several.values()]
    assert reserved == [
        [{"driver": "nvidia", "device_ids": [str(number)], "capabilities": ["gpu"]}] for number in range(len(several))
    ]
    assert len(several) == 2
    added = several["freqmerge-1"]
    assert added["extends"]["file"] == "docker-compose.yml", "a path starts at the folder of the first file"
    assert added["extends"]["service"] in services
    assert added["ports"] == ["${PORT_1:-8001}:8000"] != services["freqmerge"]["ports"]


def test_the_gpu_image_serves_on_cuda_or_not_at_all_and_asks_for_a_driver_that_knows_it() -> None:
    told = environment("gpu")
    assert told["FREQMERGE_DEVICE"] == "cuda"
    wanted = torch.version.cuda
    assert wanted is not None
    assert told["NVIDIA_REQUIRE_CUDA"] == f'"cuda>={wanted}"'
    assert "FREQMERGE_DEVICE" not in environment("runtime") | environment("cpu")


def test_image_compose_kubernetes_and_alert_wait_as_long_as_the_longest_start(services: dict[str, Any]) -> None:
    [health] = [line for line in stages()["gpu"] if line.startswith("HEALTHCHECK")]
    assert "--start-period=1800s" in health
    assert services["freqmerge"]["healthcheck"]["start_period"] == "1800s"
    pods = {
        "deployment.yml": ("Deployment", lambda found: found["spec"]["template"]["spec"]),
        "inferenceservice.yml": ("InferenceService", lambda found: found["spec"]["predictor"]),
    }
    for name, (kind, pod) in pods.items():
        text = (DOCKER / "kubernetes" / name).read_text(encoding="utf-8")
        [found] = [one for one in yaml.safe_load_all(text) if one["kind"] == kind]
        probe = pod(found)["containers"][0]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == 1800
    [alert] = [rule for rule in alert_rules() if rule["alert"] == "FreqMergeNotReady"]
    quiet = re.search(r"process_start_time_seconds\{[^}]*\} < (\d+)", alert["expr"])
    assert quiet is not None
    assert int(quiet[1]) + 60 * int(alert["for"].removesuffix("m")) == 1800


def test_both_files_build_a_target_of_the_dockerfile_whose_default_is_the_gpu(services: dict[str, Any]) -> None:
    assert services["freqmerge"]["build"]["target"] == "gpu"
    assert list(stages())[-1] == "gpu"
    assert compose("docker/compose.cpu.yml")["services"]["freqmerge"]["build"]["target"] in stages()


def test_the_training_file_changes_nothing_but_the_image() -> None:
    trained = compose("docker/compose.train.yml")
    assert trained == {"services": {"freqmerge": {"image": "freqmerge:train", "build": {"target": "train"}}}}
    assert "train" in stages()


@pytest.mark.parametrize("name", ["freqmerge", "prometheus", "grafana"])
def test_every_container_is_read_only_without_capabilities_bounded_and_started_again(
    services: dict[str, Any], name: str
) -> None:
    service = services[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_images_of_others_are_pinned_and_reachable_from_this_host_only(services: dict[str, Any], name: str) -> None:
    assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", services[name]["image"])
    assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])


def test_the_redis_is_hardened_bounded_writes_nothing_and_is_reached_by_the_service_alone() -> None:
    added = compose("docker/compose.redis.yml")["services"]
    redis = added["redis"]
    assert re.fullmatch(r"library/redis:\d+\.\d+\.\d+", redis["image"])
    assert (redis["read_only"], redis["cap_drop"]) == (True, ["ALL"])
    assert (redis["security_opt"], redis["restart"]) == (["no-new-privileges:true"], "unless-stopped")
    assert redis["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}
    assert not redis.keys() & {"ports", "volumes"}
    url = added["freqmerge"]["environment"]["FREQMERGE_STORE_URL"]
    assert url == "redis://redis:6379/0"
    assert Settings(store_url=url).keeps_images


def test_the_redis_takes_its_options_and_drops_what_was_used_longest_ago() -> None:
    [program, *options] = compose("docker/compose.redis.yml")["services"]["redis"]["command"]
    assert program == "redis-server"
    with redis_server(*(option.replace("${REDIS_MEMORY:-256mb}", "256mb") for option in options)) as server:
        for name, value in {
            "maxmemory": str(256 << 20),
            "maxmemory-policy": "allkeys-lru",
            "save": "",
            "appendonly": "no",
        }.items():
            assert server.ask("CONFIG", "GET", name) == {name.encode(): value.encode()}


def test_the_grace_period_is_longer_than_the_longest_shutdown(services: dict[str, Any]) -> None:
    default = re.fullmatch(r"\$\{STOP_GRACE_PERIOD:-(\d+)s\}", services["freqmerge"]["stop_grace_period"])
    assert default is not None
    longest = Settings.model_fields["shutdown_delay_s"].default + Settings.model_fields["shutdown_timeout_s"].default
    assert int(default[1]) > longest + FORCED_END_S
    assert services["freqmerge"]["init"] is True


def test_what_is_compiled_or_downloaded_lies_on_a_volume_that_the_image_gives_to_its_user(
    services: dict[str, Any],
) -> None:
    mounts = dict(reversed(volume.split(":")) for volume in services["freqmerge"]["volumes"])
    assert mounts == {"/var/cache/freqmerge": "cache", "/models": "models"}
    assert set(mounts.values()) <= compose("docker-compose.yml")["volumes"].keys()
    caches = {name: place for name, place in environment("gpu").items() if "CACHE" in name or name == "HF_HOME"}
    assert len(caches) == 4
    assert all(place.startswith("/var/cache/freqmerge/") for place in caches.values())
    assert "VOLUME /var/cache/freqmerge" in stages()["gpu"]
    small = {name for name in environment("runtime") | environment("cpu") if "CACHE" in name}
    assert small == {"FREQMERGE_ENGINE_CACHE"}, "it has to start without a volume: the others have to be writable"
    [made] = [line for line in stages()["runtime"] if "install --directory" in line]
    assert made.endswith("install --directory --owner 10001 --group 10001 /models /var/cache/freqmerge")


def test_every_file_that_is_mounted_exists(services: dict[str, Any]) -> None:
    mounted = [volume for service in services.values() for volume in service["volumes"] if volume.startswith(".")]
    assert len(mounted) == 5
    for volume in mounted:
        source, _, mode = volume.split(":")
        assert (ROOT / source).exists(), source
        assert mode == "ro"


def test_prometheus_scrapes_the_port_that_the_service_listens_on(services: dict[str, Any]) -> None:
    [job] = settings("prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["freqmerge:8000"]}]
    assert services["freqmerge"]["environment"]["FREQMERGE_PORT"] == "8000"
    assert services["freqmerge"]["ports"] == ["${PORT:-8000}:8000"]


def test_prometheus_scrapes_every_service_of_a_host_with_several_gpus(services: dict[str, Any]) -> None:
    several = compose("docker/compose.gpus.yml")["services"]
    [mounted] = several.pop("prometheus")["volumes"]
    source, place, mode = mounted.split(":")
    assert mode == "ro"
    assert f"./docker/targets/none.yml:{place}:ro" in services["prometheus"]["volumes"], "one takes the other's place"
    assert settings("targets/none.yml") == []
    [job] = settings("prometheus.yml")["scrape_configs"]
    [wanted] = [pattern for found in job["file_sd_configs"] for pattern in found["files"]]
    assert Path(place).match(wanted)
    assert place.startswith("/etc/prometheus/targets/"), "a relative pattern starts at the folder of prometheus.yml"
    assert "./docker/prometheus.yml:/etc/prometheus/prometheus.yml:ro" in services["prometheus"]["volumes"]
    added = yaml.safe_load((ROOT / source).read_text(encoding="utf-8"))
    targets = [target for group in (*job["static_configs"], *added) for target in group["targets"]]
    assert targets == [f"{name}:8000" for name in several]


def test_grafana_finds_prometheus_and_the_dashboard(services: dict[str, Any]) -> None:
    [source] = settings("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "--web.listen-address" not in " ".join(services["prometheus"]["command"]), "9090 is its default"
    used = {json.dumps(panel["datasource"]) for panel in dashboard()["panels"] if panel["type"] != "row"}
    assert used == {json.dumps({"type": source["type"], "uid": source["uid"]})}
    interval = settings("prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    [provider] = settings("grafana/provisioning/dashboards/freqmerge.yml")["providers"]
    folder = provider["options"]["path"]
    assert f"./docker/grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DOCKER / "grafana/dashboards" / Path(home).relative_to(folder)).is_file()
