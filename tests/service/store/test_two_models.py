"""A model takes another's place: two processes with two checkpoints on one Redis, and a Prometheus beside them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from model.checkpoint import save_checkpoint
from model.images.preprocess import Preprocess
from model.labels import CLASS_NAMES
from tests.docker.files import panel_queries
from tests.docker.scraping import PATIENCE_S, data, prometheus_on
from tests.model.tiny import tiny
from tests.support.doubles import picture
from tests.support.paths import DOCS
from tests.support.process import Process
from tests.support.redis_server import RedisServer, redis_server
from tests.support.wire import problem

pytestmark = pytest.mark.slow

FAVOURITES = {"old": 3, "new": 7}
"""The class that each model finds in every picture."""


class Replica(NamedTuple):
    """A running process and what it serves."""

    client: httpx.Client
    digest: str
    label: str

    def classify(self) -> dict[str, Any]:
        """Its answer for a picture."""
        response = self.client.post("/classify", content=picture(90, (64, 48)))
        assert response.status_code == 200
        answer: dict[str, Any] = response.json()
        return answer

    @property
    def address(self) -> str:
        """Host and port."""
        return self.client.base_url.netloc.decode()


class Rollout(NamedTuple):
    """The old and the new model, both serving, and the Redis between them."""

    old: Replica
    new: Replica
    server: RedisServer


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollout]:
    folder = tmp_path_factory.mktemp("checkpoints")
    with ExitStack() as stack:
        server = stack.enter_context(redis_server())
        started: dict[str, tuple[Process, str]] = {}
        for name, favourite in FAVOURITES.items():
            model = tiny()
            model.vit.head.bias.data[favourite] += 1000
            path = folder / f"{name}.safetensors"
            manifest = save_checkpoint(path, model, name="pets", preprocess=Preprocess(native_size=16))
            process = Process("--port", "0", checkpoint=path, device="cpu", store_url=server.url, store_timeout_s=5)
            stack.callback(process.stop)
            started[name] = (process, manifest.digest)
        replicas = []
        for name, (process, digest) in started.items():
            process.told("ready")
            client = stack.enter_context(process.client())
            replicas.append(Replica(client, digest, CLASS_NAMES[FAVOURITES[name]]))
        yield Rollout(*replicas, server)


def test_a_picture_of_one_model_is_drawn_by_its_own_process_and_unknown_to_the_other_both_ways(
    rollout: Rollout,
) -> None:
    for own, other in ((rollout.old, rollout.new), (rollout.new, rollout.old)):
        url = own.classify()["heatmap_url"]
        assert own.client.get(url).status_code == 200
        told = problem(other.client.get(url), 404, "unknown_image")
        assert "a picture that this model classified" in told["detail"]
        again = other.classify()["heatmap_url"]
        assert other.client.get(again).status_code == 200
        assert other.client.post("/heatmap", content=picture(90, (64, 48))).status_code == 200


def test_every_answer_the_card_and_the_metrics_name_the_model_that_gave_it(rollout: Rollout) -> None:
    assert rollout.old.digest != rollout.new.digest
    for replica in (rollout.old, rollout.new):
        answer = replica.classify()
        assert answer["model"] == {"name": "pets", "digest": replica.digest}
        assert answer["predictions"][0]["label"] == replica.label
        card = replica.client.get("/model").json()
        assert (card["name"], card["digest"]) == ("pets", replica.digest)
        metrics = replica.client.get("/metrics").text
        [info] = re.findall(r"^freqmerge_model_info\{.*", metrics, re.MULTILINE)
        assert f'digest="{replica.digest}"' in info


@pytest.mark.parametrize("version", [b"FQM1", b"FQM9"])
def test_a_record_that_another_version_of_the_service_left_is_unknown_and_breaks_nothing(
    rollout: Rollout, version: bytes
) -> None:
    answer = rollout.new.classify()
    [key] = rollout.server.ask("KEYS", f"freqmerge:image:*:{answer['image_id']}")
    record: bytes = rollout.server.ask("GET", key)
    for other in (version + record[4:], version, record[:40], b""):
        rollout.server.ask("SET", key, other)
        problem(rollout.new.client.get(answer["heatmap_url"]), 404, "unknown_image")
    rollout.server.ask("SET", key, record)
    assert rollout.new.client.get(answer["heatmap_url"]).status_code == 200


def test_the_dashboard_lists_both_models_adds_their_classes_up_and_the_documented_query_tells_them_apart(
    rollout: Rollout, tmp_path: Path
) -> None:
    old, new, _ = rollout
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/more.yml").write_text(yaml.safe_dump([{"targets": [new.address]}]), encoding="utf-8")
    page = (DOCS / "guide/kubernetes.md").read_text(encoding="utf-8")
    [apart] = re.findall(r"^  ```promql\n  (.*)\n", page, re.MULTILINE)
    models, classes = panel_queries()["Models that are served A"], panel_queries()["Classes predicted A"]
    with prometheus_on(old.address, tmp_path, interval="1s") as prometheus:

        def asked(query: str) -> list[dict[str, Any]]:
            chosen = {"$instance": ".*", "$replica": ".*", "$__range": "5m"}
            for name, value in chosen.items():
                query = query.replace(name, value)
            found: list[dict[str, Any]] = data(prometheus, "/query", query=query)["result"]
            return found

        deadline = time.monotonic() + PATIENCE_S
        rates: dict[str, float] = {}
        while time.monotonic() < deadline and not (len(rates) == 2 and all(rate > 0 for rate in rates.values())):
            old.classify()
            new.classify()
            rates = {one["metric"]["digest"]: float(one["value"][1]) for one in asked(apart)}
        assert rates.keys() == {old.digest, new.digest}
        shown = {one["metric"]["instance"]: one["metric"]["digest"] for one in asked(models)}
        assert shown == {old.address: old.digest, new.address: new.digest}
        counted = {one["metric"]["label"]: float(one["value"][1]) for one in asked(classes)}
    assert {label for label, count in counted.items() if count > 0} == {old.label, new.label}
