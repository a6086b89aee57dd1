"""Behind a proxy that shows the service under a path prefix, and strips it or not."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import SecretStr

from service.errors import SettingsError
from service.settings import read_settings
from tests.service.conftest import Running
from tests.support.doubles import picture
from tests.support.wire import problem

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
PUBLIC = "http://public.example/some/vision"


class Proxy:
    """Asks for public URLs, and passes them on with or without the prefix."""

    def __init__(self, client: httpx.AsyncClient, strips: bool) -> None:
        self._client = client
        self._strips = strips

    async def __call__(self, method: str, url: str, **given: object) -> httpx.Response:
        path = url.removeprefix("http://public.example")
        assert path.startswith("/some/vision")
        return await self._client.request(method, path.removeprefix("/some/vision") if self._strips else path, **given)  # type: ignore[arg-type]


@pytest.fixture(params=[True, False], ids=["strips", "passes on"])
async def ask(request: pytest.FixtureRequest, start: Start) -> Proxy:
    app = await start(root_path="/some/vision", api_keys=SecretStr("key-0123456789"))
    app.client.headers["X-API-Key"] = "key-0123456789"
    return Proxy(app.client, request.param)


async def test_a_heatmap_url_leads_back_to_the_service(ask: Proxy) -> None:
    answer = await ask("POST", f"{PUBLIC}/classify", content=picture(7))
    url = urljoin(f"{PUBLIC}/classify", answer.json()["heatmap_url"])
    assert url.startswith(f"{PUBLIC}/heatmap?image_id=")
    assert (await ask("GET", url)).headers["content-type"] == "image/png"


@pytest.mark.parametrize("page", ["/", "/docs"])
async def test_the_pages_find_their_parts_and_the_document_behind_the_prefix(ask: Proxy, page: str) -> None:
    found = await ask("GET", f"{PUBLIC}{page}")
    parts = re.findall(r'(?:href|src)="([^"#:]+\.(?:css|js|svg|json))"', found.text)
    assert len(parts) >= 3
    for part in parts:
        assert (await ask("GET", urljoin(f"{PUBLIC}{page}", part))).status_code == 200, part
    document = (await ask("GET", urljoin(f"{PUBLIC}{page}", "openapi.json"))).json()
    assert document["servers"] == [{"url": "/some/vision"}]
    assert "/classify" in document["paths"]


async def test_a_problem_names_the_path_that_the_client_knows(ask: Proxy) -> None:
    refused = problem(await ask("POST", f"{PUBLIC}/classify", content=b""), 422, "empty_body")
    assert refused["instance"] == "/some/vision/classify"
    unknown = problem(await ask("GET", f"{PUBLIC}/nowhere"), 404, "route_not_found")
    assert "/some/vision/nowhere" in unknown["detail"]
    wrong = await ask("GET", f"{PUBLIC}/classify")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


async def test_probes_are_open_under_the_prefix_and_the_rest_is_not(ask: Proxy) -> None:
    stranger = {"X-API-Key": "not-the-key"}
    assert (await ask("GET", f"{PUBLIC}/ready", headers=stranger)).status_code == 200
    assert (await ask("GET", f"{PUBLIC}/model", headers=stranger)).status_code == 401


async def test_a_probe_that_goes_around_the_proxy_needs_no_prefix(start: Start) -> None:
    client = (await start(root_path="/some/vision")).client
    assert (await client.get("/ready")).status_code == 200
    assert (await client.get("/some/visionary/ready")).status_code == 404


async def test_metrics_name_routes_without_the_prefix(start: Start) -> None:
    app = await start(root_path="/some/vision")
    await app.client.get("/some/vision/labels")
    sample = app.service.metrics.registry.get_sample_value
    assert sample("freqmerge_http_requests_total", {"route": "/labels", "code": "200"}) == 1


@pytest.mark.parametrize("bad", ["vision", "/vision/", "//vision", "/", "/a b", "https://public.example/vision"])
def test_a_prefix_that_is_no_path_is_refused_at_start(bad: str) -> None:
    with pytest.raises(SettingsError, match="ROOT_PATH=.* is not valid"):
        read_settings(root_path=bad)
