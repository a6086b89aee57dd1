"""Query parameters that a route does not have."""

from __future__ import annotations

import httpx
import pytest

from tests.support.doubles import picture
from tests.support.wire import problem

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/classify?topk=3", "topk: expected top_k"),
        ("POST", "/classify?TOP_K=3", "TOP_K: expected top_k"),
        ("POST", "/classify?top_k=3&verbose", "verbose: expected one of top_k, found an unknown parameter; see"),
        ("POST", "/classify/batch?top-k=3", "top-k: expected top_k"),
        ("GET", "/heatmap?image_id=x&colour_map=jet", "colour_map: expected colormap"),
        ("GET", "/heatmap?image_id=x&vew=score", "vew: expected view"),
        ("POST", "/heatmap?image_id=x", "image_id: expected one of view, colormap, layer, opacity, size, format"),
    ],
)
async def test_a_misspelt_parameter_is_refused_with_the_one_that_was_meant(
    client: httpx.AsyncClient, method: str, path: str, words: str
) -> None:
    refused = problem(await client.request(method, path, content=picture(7)), 422, "bad_parameter")
    assert words in refused["detail"]
    [fault] = refused["errors"]
    assert words.startswith(f"{fault['parameter']}: expected {fault['expected']}")


async def test_every_unknown_parameter_is_named_shortened_and_only_the_first_eight(client: httpx.AsyncClient) -> None:
    query = "&".join(f"{'x' * 100}{index}=1" for index in range(20))
    refused = problem(await client.post(f"/classify?{query}", content=picture(7)), 422, "bad_parameter")
    assert len(refused["errors"]) == 8
    assert len(refused["detail"]) < 1000


async def test_a_probe_may_carry_whatever_its_monitor_adds(client: httpx.AsyncClient) -> None:
    assert (await client.get("/live?nocache=123")).status_code == 200
