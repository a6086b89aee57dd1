"""What a browser is told: who may call from another origin, and what it must not do with an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx
import pytest
from pydantic import SecretStr

from service.errors import SettingsError
from service.settings import Settings, read_settings
from tests.service.conftest import Running
from tests.support.doubles import picture

pytestmark = pytest.mark.anyio
Start = Callable[..., Awaitable[Running]]
SHOP = "https://shop.example"
ASKING = {"Origin": SHOP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}


async def test_no_other_origin_may_call_by_default(client: httpx.AsyncClient) -> None:
    assert (await client.options("/classify", headers=ASKING)).status_code == 405
    answer = await client.post("/classify", content=picture(7), headers={"Origin": SHOP})
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_page_of_an_allowed_origin_may_send_pictures_with_a_key_and_read_why_it_was_refused(
    start: Start,
) -> None:
    client = (await start(cors_origins=f"https://other.example, {SHOP}", api_keys=SecretStr("key-0123456789"))).client
    asked = await client.options("/classify", headers=ASKING)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == SHOP
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "x-api-key" in asked.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in asked.headers
    refused = await client.post("/classify", content=picture(7), headers={"Origin": SHOP})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, SHOP)
    assert "X-Request-ID" in refused.headers["access-control-expose-headers"]


async def test_a_page_of_another_origin_may_not(start: Start) -> None:
    client = (await start(cors_origins=SHOP)).client
    stranger = {"Origin": "https://shop.example.evil.example"}
    assert (await client.options("/classify", headers=ASKING | stranger)).status_code == 400
    answer = await client.get("/live", headers=stranger)
    assert "access-control-allow-origin" not in answer.headers


async def test_a_star_allows_every_origin(start: Start) -> None:
    client = (await start(cors_origins="*")).client
    assert (await client.get("/live", headers={"Origin": SHOP})).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("bad", ["shop.example", "https://shop.example/", "https://a b", "ftp://shop.example", ","])
def test_an_origin_that_no_browser_would_send_is_refused_at_start(bad: str) -> None:
    with pytest.raises(SettingsError, match="CORS_ORIGINS=.* is not valid"):
        read_settings(cors_origins=bad)


def test_origins_are_separated_by_commas() -> None:
    assert Settings(cors_origins=f" {SHOP} ,http://localhost:3000").allowed_origins == [SHOP, "http://localhost:3000"]
    assert Settings().allowed_origins == []


@pytest.mark.parametrize(("method", "path"), [("GET", "/live"), ("POST", "/classify"), ("GET", "/nowhere")])
async def test_an_answer_may_load_nothing_and_be_shown_in_no_frame(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    headers = (await client.request(method, path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_may_load_what_this_service_serves_and_nothing_else(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    policies = answer.headers.get_list("content-security-policy")
    assert len(policies) == 1
    sources = {word for directive in policies[0].split("; ") for word in directive.split()[1:]}
    assert sources == {"'none'", "'self'", "blob:", "data:"}
    assert answer.headers["x-frame-options"] == "DENY"
