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


@pytest.mark.parametrize("headers", ["traceparent", "traceparent, tracestate", "Baggage,Content-Type"])
async def test_a_page_of_an_allowed_origin_may_send_trace_context(start: Start, headers: str) -> None:
    client = (await start(cors_origins=SHOP)).client
    asked = await client.options("/classify", headers=ASKING | {"Access-Control-Request-Headers": headers.lower()})
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == SHOP


async def test_a_page_of_an_allowed_origin_may_reach_a_service_in_a_private_network(start: Start) -> None:
    client = (await start(cors_origins=SHOP)).client
    private = {"Access-Control-Request-Private-Network": "true"}
    asked = await client.options("/classify", headers=ASKING | private)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-private-network" not in (await client.options("/classify", headers=ASKING)).headers
    stranger = {"Origin": "https://evil.example"}
    assert (await client.options("/classify", headers=ASKING | private | stranger)).status_code == 400


@pytest.mark.parametrize("bad", ["shop.example", "https://shop.example/", "https://a b", "ftp://shop.example", ","])
def test_an_origin_that_no_browser_would_send_is_refused_at_start(bad: str) -> None:
    with pytest.raises(SettingsError, match="CORS_ORIGINS=.* is not valid"):
        read_settings(cors_origins=bad)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("https://*.shop.example", "a wildcard inside 'https://*.shop.example'; list every origin, or write * alone"),
        ("https://shop.example:*", "a wildcard inside"),
        ("shop.example", "no scheme in 'shop.example'; write https:// or http:// before it"),
        ("localhost:3000", "no scheme in 'localhost:3000'"),
        ("ftp://shop.example", "the scheme 'ftp' in 'ftp://shop.example'"),
        ("null", "no scheme in 'null'"),
        ("https://shop.example/", "a trailing slash in 'https://shop.example/'; write https://shop.example"),
        (
            "https://shop.example:8443/app?x=1",
            "'/app?x=1', in 'https://shop.example:8443/app?x=1'; write https://shop.example:8443",
        ),
        ("https://shop.example#top", "more than an origin, '#top', in"),
        ("https://me@shop.example", "a user name in 'https://me@shop.example'"),
        ("https://me:secret@shop.example", "a user name in"),
        (
            "https://Shop.Example",
            "upper case in 'https://Shop.Example', which browsers never send; write https://shop.example",
        ),
        (
            "HTTPS://shop.example:8443",
            "upper case in 'HTTPS://shop.example:8443', which browsers never send; write https://shop.example:8443",
        ),
        (
            "https://shop.example:443",
            "a default port in 'https://shop.example:443', which browsers never send; write https://shop.example",
        ),
        ("http://shop.example:80", "a default port in"),
        (
            "http://shop.example:08080",
            "a port with zeros before it in 'http://shop.example:08080', which browsers never send; write http://shop.example:8080",
        ),
        ("http://shop.example:", "no port after the colon in 'http://shop.example:'"),
        ("http://shop.example:http", "no port after the colon in"),
        ("http://shop.example:70000", "no port after the colon in"),
        ("https://", "no host name in 'https://'"),
        ("https://a b", "no host name in 'https://a b'"),
        ("https://shop..example", "no host name in 'https://shop..example'"),
        (
            "https://bücher.example",
            "a host in 'https://bücher.example' that browsers spell otherwise; write https://xn--bcher-kva.example",
        ),
        ("http://[0:0:0:0:0:0:0:1]:3000", "that browsers spell otherwise; write http://[::1]:3000"),
        ("http://127.1:3000", "no IPv4 address in 'http://127.1:3000'; write one as in http://127.0.0.1:3000"),
        ("http://[::g]", "no IPv6 address in 'http://[::g]'"),
        ("https://shop.example,,https://other.example", "nothing between two commas; remove one of them"),
    ],
)
def test_an_origin_that_can_never_match_is_refused_with_the_reason(bad: str, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(cors_origins=f"{SHOP}, {bad}")
    message = str(caught.value)
    assert message.startswith(f"cannot start: FREQMERGE_CORS_ORIGINS={SHOP}, {bad} is not valid: expected origins that")
    assert f"found {why}" in message or why in message
    assert message.count("found ") == 1


def test_every_origin_that_can_never_match_is_named() -> None:
    with pytest.raises(SettingsError, match=r"found a trailing slash in .*; found upper case in "):
        read_settings(cors_origins="https://shop.example/,https://SHOP.example")


@pytest.mark.parametrize(
    "good",
    [
        "*",
        SHOP,
        "http://localhost:3000",
        "http://127.0.0.1:8080",
        "http://[::1]:3000",
        "https://xn--bcher-kva.example",
        "https://a_b.example.",
    ],
)
def test_an_origin_that_a_browser_sends_is_taken(good: str) -> None:
    assert read_settings(cors_origins=good).allowed_origins == [good]


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
