"""The service on a real Ray of this machine: two ingresses, two engines of known cost, one Redis."""

from __future__ import annotations

import os
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.errors import SettingsError
from service.settings import Settings
from tests.docker.scraping import data, empty_panels, prometheus_on
from tests.load.costed_engine import Cost, costed_loader
from tests.load.processes import Server
from tests.load.scale import replica_pids
from tests.load.targets import HOST, SCALED
from tests.service.conftest import until
from tests.support.doubles import picture
from tests.support.redis_server import redis_server

PATIENCE_S = 120.0
COST = Cost(base_s=0.3, per_image_s=0.005)
"""Two such engines do 25 images a second: fewer than two ingresses bring even on a slow machine."""
BATCH, QUEUE = 4, 8
KEPT_IN_REDIS = {"Memory B"}
"""The panel of recent pictures in the memory of the processes."""
CLIENTS = 160
"""More than every queue, call and batch of the fixture hold together."""


@pytest.fixture(scope="module")
def ray_app() -> ModuleType:
    """The module that `serve run` is given. Importing Ray warns of its own use of pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import service.ray_app
    return service.ray_app


def bound(app: Any) -> dict[str, Any]:
    """The deployments of an application by name."""
    ingress = app._bound_deployment
    return {one.name: one for one in (ingress, ingress.init_args[0]._bound_deployment)}


def test_ray_takes_what_it_is_told(ray_app: ModuleType) -> None:
    fixed = Settings(ingress_min_replicas=2, ingress_max_replicas=2, engine_replicas=3, device="cuda")
    deployments = bound(ray_app.application(fixed))
    assert deployments["Engine"].ray_actor_options["num_gpus"] == 1
    assert deployments["Engine"].num_replicas == 3
    assert deployments["Ingress"].num_replicas == 2
    elastic = bound(ray_app.application(Settings(device="cpu")))
    scaling = elastic["Ingress"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert elastic["Engine"].ray_actor_options["num_gpus"] == 0


def test_importing_the_module_builds_nothing_and_asking_for_the_app_builds_it(
    ray_app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREQMERGE_DEVICE", "cpu")
    assert "app" not in vars(ray_app)
    assert set(bound(ray_app.app)) == {"Engine", "Ingress"}
    assert bound(ray_app.build({"engine_replicas": "2"}))["Engine"].num_replicas == 2
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = ray_app.other
    with pytest.raises(SettingsError, match="FREQMERGE_ENGINE_REPLICAS=0"):
        ray_app.build({"engine_replicas": "0"})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two ingresses and two engines behind Ray's proxy, ready."""
    settings: dict[str, Any] = {
        "max_batch_size": BATCH,
        "max_queue_size": QUEUE,
        "engine_replicas": 2,
        "ingress_min_replicas": 2,
        "ingress_max_replicas": 2,
        "log_level": "warning",
    }
    home = {"HOME": str(tmp_path_factory.mktemp("home"))}  # Ray keeps a token there
    with redis_server() as redis, SCALED.start(Path(), COST, home, store_url=redis.url, **settings) as server:
        yield server


@pytest.fixture
def client(cluster: Server) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=CLIENTS)
    with httpx.Client(
        base_url=f"http://{HOST}:{cluster.port}", timeout=PATIENCE_S, limits=limits, trust_env=False
    ) as opened:
        yield opened


def replicas(client: httpx.Client, pattern: str) -> Counter[str]:
    """By replica, the values of the metrics whose name and labels match."""
    found: Counter[str] = Counter()
    for line in client.get("/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if re.search(pattern, name) and (replica := re.search(r'replica="([^"]+)"', name)):
            found[replica[1]] += int(float(value))
    return found


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def without_chance(answer: dict[str, Any]) -> dict[str, Any]:
    """What is the same whoever answers: no random ids, no times."""
    return {name: value for name, value in answer.items() if name not in ("image_id", "heatmap_url", "timings_ms")}


@pytest.mark.anyio
async def test_the_routes_answer_as_those_of_a_single_process(cluster: Server) -> None:
    app = create_app(Settings(max_batch_size=BATCH, max_queue_size=QUEUE), costed_loader(COST))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://one") as one,
        httpx.AsyncClient(base_url=f"http://{HOST}:{cluster.port}", timeout=PATIENCE_S, trust_env=False) as many,
    ):
        await until(lambda: app.state.service.ready)
        for path in ("/live", "/ready", "/model", "/labels", "/openapi.json", "/v2/models/fake", "/nowhere"):
            alone, scaled = await one.get(path), await many.get(path)
            assert scaled.status_code == alone.status_code
            expected, found = alone.json(), scaled.json()
            for answer in (expected, found):
                answer.pop("request_id", None)
            assert found == expected
        for path, body in (
            ("/classify?top_k=3", picture()),
            ("/heatmap?format=json", picture()),
            ("/classify", b"no picture"),
        ):
            alone, scaled = [await client.post(path, content=body) for client in (one, many)]
            assert scaled.status_code == alone.status_code
            assert scaled.headers["content-type"] == alone.headers["content-type"]
            ignored = {"request_id"}
            expected, found = (
                {k: v for k, v in without_chance(answer.json()).items() if k not in ignored}
                for answer in (alone, scaled)
            )
            assert found == expected


def test_a_picture_classified_on_one_ingress_has_its_heatmap_on_every_other(client: httpx.Client) -> None:
    heatmap_url = client.post("/classify", content=picture()).json()["heatmap_url"]
    pattern = r'http_requests_total\{(?=.*code="200").*route="/heatmap"'
    eventually(
        lambda: (
            client.get(f"/{heatmap_url}").status_code == 200
            and len([count for count in replicas(client, pattern).values() if count]) == 2
        )
    )


def test_one_scrape_tells_of_every_replica_and_counts_no_image_twice(client: httpx.Client) -> None:
    before = replicas(client, "^freqmerge_images_total.*answered")
    batches = replicas(client, "^freqmerge_batch_size_sum")
    for _ in range(10):
        assert client.post("/classify", content=picture()).status_code == 200
    after = replicas(client, "^freqmerge_images_total.*answered")
    assert sum((after - before).values()) == 10
    assert sum((replicas(client, "^freqmerge_batch_size_sum") - batches).values()) == 10
    assert {name.partition("-")[0] for name in after} == {"ingress"}
    assert len(after) == 2
    queues = [line for line in client.get("/metrics").text.splitlines() if line.startswith("freqmerge_queue_images{")]
    assert len(queues) == 4


def test_the_dashboard_fills_as_that_of_a_single_process(cluster: Server, client: httpx.Client, tmp_path: Path) -> None:
    def traffic() -> None:
        for _ in range(4):
            assert client.post("/classify", content=picture(size=(200, 200))).status_code == 200  # worth a thread
        assert client.post("/classify", content=b"no picture").status_code == 415

    with prometheus_on(f"{HOST}:{cluster.port}", tmp_path, "1s") as prometheus:
        assert empty_panels(prometheus, traffic, "15s", without=KEPT_IN_REDIS) == {}
        offered = data(prometheus, "/label/replica/values", **{"match[]": 'freqmerge_queue_images{job="freqmerge"}'})
        assert sorted(name.partition("-")[0] for name in offered) == ["engine", "engine", "ingress", "ingress"]


def classify_at_once(client: httpx.Client, pool: ThreadPoolExecutor, count: int) -> list[Future[httpx.Response]]:
    return [pool.submit(client.post, "/classify", content=picture()) for _ in range(count)]


def test_what_finds_no_room_is_refused_with_429_and_a_time_to_come_back(client: httpx.Client) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [one.result() for one in classify_at_once(client, pool, CLIENTS)]
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["type"] == "urn:freqmerge:problem:queue_full"
            assert int(answer.headers["retry-after"]) >= 1


def test_an_engine_killed_under_load_costs_no_answer_and_is_replaced(cluster: Server, client: httpx.Client) -> None:
    engines = replicas(client, "^freqmerge_model_info").keys()
    assert len(engines) == 2
    victim = replica_pids(cluster, "Engine")[0]
    statuses: Counter[int] = Counter()
    with ThreadPoolExecutor(8) as pool:
        under_way = classify_at_once(client, pool, 8)
        os.kill(victim, signal.SIGKILL)
        for _ in range(12):
            statuses.update(one.result().status_code for one in under_way)
            under_way = classify_at_once(client, pool, 8)
        statuses.update(one.result().status_code for one in under_way)
    assert statuses.keys() <= {200, 503}, "an answer or an error for every one, and a problem document at that"
    assert statuses[200] >= 13 * 8 - BATCH * 4, "all but what was inside"
    eventually(lambda: len(replicas(client, "^freqmerge_model_info").keys() - engines) == 1)
    assert client.post("/classify", content=picture()).status_code == 200


def test_a_shutdown_answers_what_engines_have_and_refuses_the_rest(cluster: Server, client: httpx.Client) -> None:
    before = sum(replicas(client, "^freqmerge_images_admitted").values())
    with ThreadPoolExecutor(8) as pool:
        under_way = classify_at_once(client, pool, 8)
        eventually(lambda: sum(replicas(client, "^freqmerge_images_admitted").values()) >= before + 8)
        assert cluster.stop(PATIENCE_S) == 0
        answers = [one.result() for one in under_way]
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] >= 1
    assert statuses.keys() <= {200, 503}, (
        "Ray ends engines and ingresses at once: some may find no engine, and are told"
    )
    reasons = {answer.json()["type"] for answer in answers if answer.status_code == 503}
    assert reasons <= {"urn:freqmerge:problem:not_ready", "urn:freqmerge:problem:draining"}
